// Memory of tensors on a CPU, kept for the next tensor of about that size instead of going back to the C library. Blocks come
// from the kernel one by one, in huge pages where it has them, so that nothing small can stand between them.
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace {

constexpr size_t LARGE = 1 << 18;      // below, the C library is fast, and its heap stays whole
constexpr size_t HUGE_PAGE = 1 << 21;  // of x86-64 and of arm64 with pages of 4 KiB
constexpr size_t HEAD = 64;            // in front of each block, which stays aligned for vectors

struct Head { size_t size; };  // of the whole block, 0 where it is the C library's

Head* head_of(void* data) { return reinterpret_cast<Head*>(static_cast<char*>(data) - HEAD); }

class Shelf final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t wanted) override {
    void* data = wanted == 0 ? nullptr : wanted < LARGE ? small(wanted) : large(wanted);
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }

  void open() {
    const std::scoped_lock guard(lock_);
    if (users_++ > 0) return;
    before_ = c10::GetCPUAllocator();
    c10::SetCPUAllocator(this);
  }

  void close() {
    const std::scoped_lock guard(lock_);
    if (--users_ > 0) return;
    c10::SetCPUAllocator(before_);
    shrink_to(0);
    most_used_ = used_;
  }

  size_t held() {
    const std::scoped_lock guard(lock_);
    return used_ + kept_;
  }

 private:
  static void* small(size_t wanted) {
    void* block = std::aligned_alloc(HEAD, (HEAD + wanted + HEAD - 1) / HEAD * HEAD);
    if (block == nullptr) throw std::bad_alloc();
    return handed(block, 0);
  }

  static void* handed(void* block, size_t size) {
    static_cast<Head*>(block)->size = size;
    return static_cast<char*>(block) + HEAD;
  }

  void* large(size_t wanted) {
    const size_t unit = wanted < HUGE_PAGE ? LARGE : HUGE_PAGE, size = (HEAD + wanted + unit - 1) / unit * unit;
    const std::scoped_lock guard(lock_);
    const auto found = blocks_.lower_bound(size);
    if (found != blocks_.end() && found->first <= size + size / 2) {
      const auto [kept, block] = *found;
      blocks_.erase(found);
      kept_ -= kept;
      count_used(kept);
      return handed(block, kept);
    }
    // Sizes that do not come again must not add up: at most half as much again is held as was ever used at once.
    const size_t limit = std::max(most_used_, used_ + size) * 3 / 2;
    shrink_to(limit > used_ + size ? limit - used_ - size : 0);
    void* block = mapped(size);
    count_used(size);
    return handed(block, size);
  }

  void* mapped(size_t size) {
    void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED && !blocks_.empty()) {
      shrink_to(0);
      return mapped(size);
    }
    if (block == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE) madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
  }

  void count_used(size_t size) { most_used_ = std::max(most_used_, used_ += size); }

  void shrink_to(size_t limit) {
    while (kept_ > limit) {
      const auto largest = std::prev(blocks_.end());
      munmap(largest->second, largest->first);
      kept_ -= largest->first;
      blocks_.erase(largest);
    }
  }

  static void give_back(void* data);

  std::mutex lock_;
  std::multimap<size_t, void*> blocks_;  // that nobody uses, by size
  size_t used_ = 0, kept_ = 0, most_used_ = 0;
  int users_ = 0;
  c10::Allocator* before_ = nullptr;
};

Shelf& shelf() {
  static Shelf* const only = new Shelf;  // tensors may outlive the statics
  return *only;
}

void Shelf::give_back(void* data) {
  if (data == nullptr) return;
  Head* block = head_of(data);
  const size_t size = block->size;
  if (size == 0) return std::free(block);
  Shelf& own = shelf();
  const std::scoped_lock guard(own.lock_);
  own.used_ -= size;
  if (own.users_ > 0) {
    own.blocks_.emplace(size, block);
    own.kept_ += size;
  } else {
    munmap(block, size);
  }
}

}  // namespace

extern "C" void open_shelf() { shelf().open(); }
extern "C" void close_shelf() { shelf().close(); }
extern "C" size_t held_by_shelf() { return shelf().held(); }
