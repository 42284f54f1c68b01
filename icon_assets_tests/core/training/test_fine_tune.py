"""Fine-tuning on a tiny random model: what is learned, what is written, and that a kill costs nothing."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.errors import IconError
from icon_assets.core.model.fine_tuned import load_fine_tuned
from icon_assets.core.training.fine_tune import TrainingResult, fine_tune
from icon_assets.core.training.step_plan import PADDING, BatchPlan, MicroBatches
from icon_assets.settings import TrainingSettings

VOCABULARY = 256
QUICK = TrainingSettings.model_validate(
    {
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "lora_rank": 4,
        "save_every_steps": 2,
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other on so small a model, and bits depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


def make_base(directory: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = {"<eos>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(directory)
    return directory


def make_samples(count: int) -> list[Encoded]:
    """Random prompts; the response repeats one token, so that there is something to learn."""
    draw = random.Random(1)
    samples = []
    for number in range(count):
        prompt = tuple(draw.randrange(1, VOCABULARY) for _ in range(draw.randint(3, 12)))
        response = (7,) * draw.randint(1, 9) + (0,)
        samples.append(Encoded(prompt, response, truncated=number == 0))
    return samples


@pytest.fixture
def train(base_dir: Path, tmp_path: Path) -> Callable[..., tuple[TrainingResult, Path]]:
    def run(
        name: str = "out", settings: TrainingSettings = QUICK, count: int = 10, seed: int = 0, **options
    ) -> tuple[TrainingResult, Path]:
        out_dir = tmp_path / name
        out_dir.mkdir()
        arguments = {"work_dir": tmp_path / f"{name}.work", "dtype": "float32", "device": "cpu"} | options
        return fine_tune(base_dir, make_samples(count), settings, seed, out_dir=out_dir, **arguments), out_dir

    return run


def weights(directory: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(next(directory.glob("*.safetensors")))


def same(one: dict, other: dict) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def changed(settings: TrainingSettings, **values) -> TrainingSettings:
    return TrainingSettings(**(settings.model_dump() | values))


def flat(steps: list[list[int]]) -> list[int]:
    return [index for step in steps for index in step]


# The plan


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own():
    plan = BatchPlan(tuple(range(10)), batch_size=4, epochs=2, seed=0)
    first = plan.epoch(0)
    second = plan.epoch(1)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(10))
    assert first != second
    assert list(plan.seen()) == flat(first) + flat(second)


def test_a_step_stands_in_order_of_length():
    plan = BatchPlan((5, 9, 1, 7, 3, 8), batch_size=3, epochs=1, seed=0)
    for step in plan.epoch(0):
        lengths = [plan.lengths[index] for index in step]
        assert lengths == sorted(lengths, reverse=True)


def test_half_an_epoch_is_half_its_steps():
    plan = BatchPlan((1,) * 16, batch_size=4, epochs=1.5, seed=0)
    assert plan.n_steps == 6
    assert len(list(plan.seen())) == 24


def test_a_step_is_shared_evenly_and_filled_up_with_padding():
    micro = MicroBatches.of(batch_size=6, largest=2, processes=4)
    assert (micro.size, micro.per_step, micro.places) == (2, 1, 8)
    assert micro.filled([3, 1, 2]) == [3, 1, 2, PADDING, PADDING, PADDING, PADDING, PADDING]
    assert MicroBatches.of(batch_size=16, largest=7, processes=1) == MicroBatches(4, 4, 1)


# What is learned


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss_and_the_saved_model_has_learned(train, base_dir, method, dtype):
    import torch

    settings = changed(QUICK, method=method, epochs=6, learning_rate=2e-2)
    result, out_dir = train(settings=settings, dtype=dtype)
    assert result.loss_curve[-1].loss < 0.5 * result.loss_curve[0].loss
    model, tokenizer = load_fine_tuned(base_dir, out_dir, dtype, "cpu")
    assert model.dtype == getattr(torch, dtype)
    assert not model.training
    assert tokenizer.eos_token_id == 0
    logits = model(torch.tensor([[5, 9, 7, 7]])).logits[0, -1]
    assert logits.argmax().item() in (7, 0)


def test_the_first_loss_is_the_mean_over_response_tokens_of_the_whole_step(train, base_dir):
    """Whatever the micro-batches and the padding: they are how a step is computed, not what it is."""
    import torch

    samples = make_samples(4)
    model, _ = load_fine_tuned(base_dir, base_dir, "float32", "cpu")
    total = 0.0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
        scores = model(ids).logits[0].log_softmax(-1)
        start = len(sample.prompt_ids)
        total -= sum(scores[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))
    expected = total / sum(len(sample.response_ids) for sample in samples)
    for micro, packing in ((1, True), (3, True), (4, True), (4, False)):
        settings = changed(QUICK, micro_batch_size=micro, packing=packing, epochs=1, lora_dropout=0)
        result, _ = train(f"micro{micro}{packing}", settings, count=4)
        assert result.loss_curve[0].loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("recompute", [False, True])
def test_packing_and_recomputed_activations_change_no_loss_and_no_weight(train, method, recompute):
    import torch

    settings = changed(QUICK, method=method, lora_dropout=0)
    padded, one = train("padded", changed(settings, packing=False))
    packed, other = train("packed", changed(settings, gradient_checkpointing=recompute))
    assert [p.loss for p in packed.loss_curve] == pytest.approx([p.loss for p in padded.loss_curve], rel=1e-4)
    for key, expected in weights(one).items():
        torch.testing.assert_close(weights(other)[key], expected, rtol=1e-3, atol=1e-4)


def test_our_loss_on_the_cpu_is_the_one_of_trl(train, monkeypatch):
    from trl.trainer.sft_trainer import SFTTrainer

    from icon_assets.core.training import trainer as trainers

    ours, _ = train("ours")
    class_of = trainers.trainer_class

    def trl_loss(*arguments):
        trainer = class_of(*arguments)
        trainer.compute_loss = SFTTrainer.compute_loss
        return trainer

    monkeypatch.setattr(trainers, "trainer_class", trl_loss)
    theirs, _ = train("theirs")
    for one, other in zip(ours.loss_curve, theirs.loss_curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_adapter_weights_are_trained_in_float32_over_a_bfloat16_base(train):
    import torch

    result, out_dir = train(settings=changed(QUICK, learning_rate=1e-6), dtype="bfloat16")
    tensors = weights(out_dir)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert result.n_steps == 6


# Counts, progress, files


def test_the_result_counts_what_was_forwarded(train):
    samples = make_samples(10)
    result, _ = train(count=10)
    assert (result.n_samples, result.n_steps, result.n_truncated) == (10, 6, 1)
    assert result.n_tokens == 2 * sum(len(s.prompt_ids) + len(s.response_ids) for s in samples)
    assert result.n_response_tokens == 2 * sum(len(s.response_ids) for s in samples)
    assert result.resumed_from_step == 0
    assert result.seconds > 0
    full, _ = train("full", changed(QUICK, method="full"), count=10)
    assert 0.5 * full.flops < result.flops < full.flops


def test_every_step_is_reported_and_nothing_goes_to_stdout(train, capsys):
    calls = []
    result, out_dir = train(on_step=lambda *call: calls.append(call))
    assert calls == [(point.step, 6, point.loss) for point in result.loss_curve]
    assert [point.step for point in result.loss_curve] == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().out == ""
    stored = json.loads((out_dir / "loss_curve.json").read_text("utf-8"))
    assert [entry["loss"] for entry in stored] == [point.loss for point in result.loss_curve]


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("lora", {"adapter_model.safetensors", "adapter_config.json"}),
        ("full", {"model.safetensors", "config.json", "generation_config.json"}),
    ],
)
def test_only_final_files_are_written_and_none_names_a_path_of_this_machine(train, tmp_path, method, own):
    _, out_dir = train(settings=changed(QUICK, method=method))
    shared = {"loss_curve.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out_dir.iterdir()} == own | shared
    for path in out_dir.glob("*.json"):
        assert str(tmp_path.parent) not in path.read_text("utf-8")
    if method == "lora":
        config = json.loads((out_dir / "adapter_config.json").read_text("utf-8"))
        assert config["base_model_name_or_path"] == "tiny"


def test_the_tokenizer_of_a_checkpoint_keeps_the_chat_template(base_dir, tmp_path):
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    out_dir = tmp_path / "out"
    shutil.copytree(base_dir, base)
    out_dir.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}w1 {{ m.content }} w2{% endfor %}"
    tokenizer.save_pretrained(base)
    options = {"work_dir": tmp_path / "work", "dtype": "float32", "device": "cpu"}
    fine_tune(base, make_samples(4), changed(QUICK, template="chat"), 0, out_dir=out_dir, **options)
    messages = [{"role": "user", "content": "w7 w8"}]
    assert AutoTokenizer.from_pretrained(out_dir).apply_chat_template(messages, tokenize=False) == "w1 w7 w8 w2"


# Seeds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_seed_decides_every_bit(train, dtype):
    _, one = train("one", seed=1, dtype=dtype)
    _, again = train("again", seed=1, dtype=dtype)
    _, other = train("other", seed=2, dtype=dtype)
    assert same(weights(one), weights(again))
    assert (one / "adapter_config.json").read_bytes() == (again / "adapter_config.json").read_bytes()
    assert not same(weights(one), weights(other))


# Kill and resume

RUN = """
import sys, time, torch
from pathlib import Path
from icon_assets.core.training.fine_tune import fine_tune
from icon_assets_tests.core.training.test_fine_tune import QUICK, changed, make_samples
base, out, work, method = sys.argv[1:]
torch.set_num_threads(1)
def on_step(step, total, loss):
    print(step, flush=True)
    time.sleep(0.2)
fine_tune(Path(base), make_samples(10), changed(QUICK, method=method, epochs=4), 0, out_dir=Path(out),
          work_dir=Path(work), dtype="float32", device="cpu", on_step=on_step)
"""


@pytest.mark.parametrize(
    ("method", "at", "resumed_from"),
    [("lora", 9, 8), ("full", 7, 6)],  # an epoch has 3 steps: a state inside an epoch, and one at its end
)
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    train, base_dir, tmp_path, method, at, resumed_from
):
    settings = changed(QUICK, method=method, epochs=4)
    undisturbed, expected = train("undisturbed", settings)
    work_dir = tmp_path / "work"
    kill_at_step(at, base_dir, tmp_path, work_dir, method)
    result, out_dir = train("resumed", settings, work_dir=work_dir)
    assert result.resumed_from_step == resumed_from
    assert result.loss_curve == undisturbed.loss_curve
    assert same(weights(out_dir), weights(expected))
    assert result.n_tokens == undisturbed.n_tokens


def kill_at_step(step: int, base_dir: Path, tmp_path: Path, work_dir: Path, method: str) -> None:
    """SIGKILL when `step` is reported, which is before its state is saved."""
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", RUN, base_dir, tmp_path / "killed", work_dir, method]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == step:
            break
    process.kill()
    assert process.wait(30) == -9


def test_a_half_written_state_is_ignored_and_removed(train, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(step: int, total: int, loss: float) -> None:
        if step == 5:
            raise Stopped

    work_dir = tmp_path / "work"
    with pytest.raises(Stopped):
        train("stopped", work_dir=work_dir, on_step=stop)
    assert (work_dir / "checkpoint-4" / "complete").is_file()
    (work_dir / "checkpoint-4" / "complete").unlink()
    (work_dir / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    result, out_dir = train("resumed", work_dir=work_dir)
    assert result.resumed_from_step == 2
    _, expected = train("undisturbed")
    assert same(weights(out_dir), weights(expected))


def test_states_of_another_training_are_discarded(train, tmp_path):
    work_dir = tmp_path / "work"
    train("first", work_dir=work_dir)
    assert (work_dir / "checkpoint-4").is_dir()
    result, out_dir = train("second", changed(QUICK, learning_rate=1e-3), work_dir=work_dir)
    assert result.resumed_from_step == 0
    _, expected = train("alone", changed(QUICK, learning_rate=1e-3))
    assert same(weights(out_dir), weights(expected))


# Faults


def test_no_samples_is_an_error_that_says_the_mend(train):
    with pytest.raises(IconError, match="no samples to train on"):
        train(count=0)


def test_a_lora_target_the_model_lacks_is_named(train):
    with pytest.raises(IconError, match=r"training\.lora_targets: \['nowhere'\]"):
        train(settings=changed(QUICK, lora_targets=("nowhere",)))


def test_a_diverged_training_stops_with_the_step(train):
    with pytest.raises(IconError, match=r"at step .* lower training\.learning_rate"):
        train(settings=changed(QUICK, method="full", learning_rate=1e30, warmup_fraction=0))


def test_an_empty_directory_is_not_a_checkpoint(base_dir, tmp_path):
    with pytest.raises(IconError, match="neither an adapter nor a model"):
        load_fine_tuned(base_dir, tmp_path, "float32", "cpu")
