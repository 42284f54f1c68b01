// Packed attention of one layer in bfloat16, on CPUs whose matrix units torch's brgemm drives: AMX, or AVX-512 with
// bfloat16. Keys and values are laid out once as the units read them. Then every task takes some queries of one part,
// with all heads that share a key head: scores against the context and the part itself, exponentials, sum of values.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CPUAllocator.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <span>
#include <vector>

namespace {

using at::BFloat16;
using at::native::cpublas::brgemm;

constexpr int64_t KEYS = 64;      // of a block: columns of one product
constexpr int64_t ROWS = 192;     // queries times heads of a task at most: large products
constexpr int64_t ROOM = 5 << 18;  // bytes that a task's scores and shares may take: they are to stay in the L2 cache
constexpr int64_t DEPTH = 256;    // keys of one product with the values: brgemm compiles for each depth, and keeps it
constexpr int64_t STEP = 32;      // numbers that one pass of the loops over scores takes
constexpr float HIDDEN = -1e30f;  // finite, or the difference of two would be undefined

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Heads { const BFloat16* data; int64_t head, token; };  // strides in numbers; those of a token are adjacent
struct Part { int64_t context_start, context_stop, start, stop; };
struct Task { Part part; int64_t first; };  // queries from here on

// Numbers that nobody wrote yet, from torch's allocator: in whole cache lines, and not from the system each time.
template <class Number> struct Room {
  explicit Room(int64_t n) : memory(c10::GetCPUAllocator()->allocate(n * sizeof(Number))) {}
  Number* data() const { return static_cast<Number*>(memory.get()); }
  Number& operator[](int64_t i) const { return data()[i]; }
  c10::DataPtr memory;
};

// Threads take the next piece of work that nobody has; an exception reaches the caller's thread.
template <class Worker> void share(int64_t pieces, const Worker& worker) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    worker([&] { const int64_t piece = next++; return piece < pieces ? piece : -1; });
    at::native::cpublas::brgemm_release();
  });
}

// [tokens, size] -> blocks of [size / 2, KEYS, 2]; what fills up the last one is never looked at.
void pack_keys(const BFloat16* from, int64_t stride, int64_t tokens, int64_t size, BFloat16* to) {
  for (int64_t token = 0; token < tokens; ++token) {
    BFloat16* column = to + token / KEYS * KEYS * size + token % KEYS * 2;
    for (int64_t i = 0; i < size; i += 2) std::memcpy(column + i * KEYS, from + token * stride + i, 4);
  }
}

// [tokens, size] -> [tokens / 2, size, 2], filled up with zeros: their shares are zero, and must not meet a NaN.
void pack_values(const BFloat16* from, int64_t stride, int64_t tokens, int64_t size, BFloat16* to) {
  const std::vector<BFloat16> zeros(size);
  for (int64_t token = 0; token < up(tokens, KEYS); token += 2) {
    const BFloat16* even = token < tokens ? from + token * stride : zeros.data();
    const BFloat16* odd = token + 1 < tokens ? from + (token + 1) * stride : zeros.data();
    for (int64_t i = 0; i < size; ++i, to += 2) {
      const uint32_t pair = even[i].x | uint32_t{odd[i].x} << 16;
      std::memcpy(to, &pair, 4);
    }
  }
}

// 2^x for x <= 0 to within 3e-6, a hundredth of what bfloat16 tells apart.
__m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-125), x);  // in this order NaN stays; sum / 2^126 could be denormal, and slow
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(9.57006e-3f);
  for (float factor : {5.591786e-2f, 2.4024746e-1f, 6.9312182e-1f, 9.9999926e-1f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, whole);
}

// Hides up to STEP scores.
void hide(float* scores, int64_t n) {
  const uint64_t mask = (uint64_t{1} << n) - 1;
  _mm512_mask_storeu_ps(scores, mask, _mm512_set1_ps(HIDDEN));
  _mm512_mask_storeu_ps(scores + 16, mask >> 16, _mm512_set1_ps(HIDDEN));
}

// shares = exp(scale * (scores - their largest)) of the first `n`; zeros up to `all`. Returns their sum.
float exponentials(float* scores, BFloat16* shares, int64_t n, int64_t all, float scale) {
  const int64_t full = up(n, STEP);
  hide(scores + n, full - n);
  __m512 low = _mm512_set1_ps(HIDDEN), high = low;
  for (int64_t i = 0; i < full; i += STEP) {
    low = _mm512_max_ps(_mm512_loadu_ps(scores + i), low);
    high = _mm512_max_ps(_mm512_loadu_ps(scores + i + 16), high);
  }
  const float binary = scale * 1.44269504f;
  const __m512 factor = _mm512_set1_ps(binary);
  const __m512 offset = _mm512_set1_ps(-binary * _mm512_reduce_max_ps(_mm512_max_ps(low, high)));
  low = high = _mm512_setzero_ps();
  for (int64_t i = 0; i < full; i += STEP) {
    const __m512 a = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), factor, offset));
    const __m512 b = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i + 16), factor, offset));
    low = _mm512_add_ps(low, a);
    high = _mm512_add_ps(high, b);
    _mm512_storeu_si512(shares + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  for (int64_t i = full; i < all; i += STEP) _mm512_storeu_si512(shares + i, _mm512_setzero_si512());
  return _mm512_reduce_add_ps(_mm512_add_ps(low, high));
}

void attend(Heads query, Heads key, Heads value, BFloat16* out, int64_t tokens, int64_t key_heads, int64_t groups,
            int64_t size, float scale, const Part* parts, int64_t n_parts) {
  std::vector<int64_t> place(tokens);  // of a part, by its first token, among the packed tokens of a head
  std::vector<Task> tasks;
  int64_t packed = 0, longest = 0;
  for (const Part& part : std::span(parts, n_parts)) {
    place[part.start] = packed;
    packed += up(part.stop - part.start, KEYS);
    longest = std::max(longest, up(part.context_stop - part.context_start, STEP) + up(part.stop - part.start, KEYS));
  }
  // Few different widths, since brgemm compiles for each; not a power of two, or rows would share cache lines' sets.
  const int64_t width = std::bit_ceil<uint64_t>(longest) + STEP;
  const int64_t rows_of_task = std::min<int64_t>(ROWS, ROOM / (width * (sizeof(float) + sizeof(BFloat16))));
  const int64_t queries = std::max<int64_t>(rows_of_task / groups, 16), most = up(queries * groups, 16);
  for (const Part& part : std::span(parts, n_parts))
    for (int64_t first = part.start; first < part.stop; first += queries) tasks.push_back({part, first});
  const Room<BFloat16> keys(key_heads * packed * size), values(key_heads * packed * size);
  share(key_heads * n_parts, [&](const auto& next) {
    for (int64_t piece; (piece = next()) >= 0;) {
      const int64_t head = piece % key_heads, at = parts[piece / key_heads].start;
      const int64_t n = parts[piece / key_heads].stop - at, to = (head * packed + place[at]) * size;
      pack_keys(key.data + head * key.head + at * key.token, key.token, n, size, &keys[to]);
      pack_values(value.data + head * value.head + at * value.token, value.token, n, size, &values[to]);
    }
  });
  share(key_heads * tasks.size(), [&](const auto& next) {
    const Room<BFloat16> rows(most * size), shares(most * width);
    const Room<float> scores(most * width), result(most * size), sums(most);
    for (int64_t piece; (piece = next()) >= 0;) {
      const auto& [part, first] = tasks[piece / key_heads];
      const int64_t head = piece % key_heads, n = std::min(queries, part.stop - first), m = up(n * groups, 16);
      const int64_t context = part.context_stop - part.context_start, before = up(context, STEP);
      const int64_t context_at = before ? head * packed + place[part.context_start] : 0;
      const int64_t own = first + n - part.start, own_at = head * packed + place[part.start];
      const int64_t all = before + up(own, STEP);
      const auto each_row = [&](const auto& body) {
        for (int64_t row = 0, token = first; token < first + n; ++token)
          for (int64_t of = head * groups; of < (head + 1) * groups; ++of) body(row++, token, of);
      };
      each_row([&](int64_t row, int64_t token, int64_t of) {
        std::memcpy(&rows[row * size], query.data + of * query.head + token * query.token, size * sizeof(BFloat16));
      });
      // The part's own scores stand right behind the context's, over what its last block has too many.
      for (int64_t at = 0; at < before; at += KEYS)
        brgemm(m, KEYS, size, size, KEYS, width, false, rows.data(), &keys[(context_at + at) * size], &scores[at]);
      for (int64_t at = 0; at < own; at += KEYS)
        brgemm(m, KEYS, size, size, KEYS, width, false, rows.data(), &keys[(own_at + at) * size], &scores[before + at]);
      each_row([&](int64_t row, int64_t token, int64_t) {
        hide(&scores[row * width + context], before - context);
        const int64_t seen = before + token - part.start + 1;
        sums[row] = exponentials(&scores[row * width], &shares[row * width], seen, all, scale);
      });
      const auto add_values = [&](int64_t from, int64_t stop, int64_t values_at) {
        for (int64_t at = from; at < stop; at += DEPTH)
          brgemm(m, size, std::min(DEPTH, stop - at), width, size, size, at > 0, &shares[at],
                 &values[(values_at + at - from) * size], result.data());
      };
      add_values(0, before, context_at);
      add_values(before, all, own_at);
      each_row([&](int64_t row, int64_t token, int64_t of) {
        BFloat16* to = out + (token * groups * key_heads + of) * size;
        const __m512 factor = _mm512_set1_ps(1 / sums[row]);
        for (int64_t i = 0; i < size; i += 16) {
          const __m512 numbers = _mm512_mul_ps(_mm512_loadu_ps(&result[row * size + i]), factor);
          _mm256_storeu_si256((__m256i*)(to + i), (__m256i)_mm512_cvtneps_pbh(numbers));
        }
      });
    }
  });
}

}  // namespace

// Returns whether it succeeded: an exception must not cross into C.
extern "C" bool packed_attention(const Heads* inputs, void* out, int64_t tokens, int64_t key_heads, int64_t groups,
                                 int64_t size, float scale, const Part* parts, int64_t n_parts) {
  try {
    attend(inputs[0], inputs[1], inputs[2], static_cast<BFloat16*>(out), tokens, key_heads, groups, size, scale, parts,
           n_parts);
    return true;
  } catch (...) {
    return false;
  }
}
