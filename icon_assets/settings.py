"""All settings of a workspace, with their bounds. They are read from `settings.yaml`, and `ICON_<KEY>` overrides a key.

Values derived from settings (paths, digests) do not belong here. The layout of a workspace is in `workspace`.
"""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from icon_assets.core.digests import canonical_json

ENV_PREFIX = "ICON_"
ENV_DELIMITER = "__"

TOKEN_MODES = ("auto", "always", "never")
ControlKind = Literal["none", "random_tokens", "random_chars"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse duplicates: two entries would share one partition, one file or one row of results."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} is there twice; remove one")
    return values


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    name: str = Field(
        default="bundled:smollm2-135m-instruct",
        description="`bundled:smollm2-135m-instruct`, a local directory, or a Hugging Face id (which needs "
        "`revision`).",
    )
    revision: str | None = Field(
        default=None, description="Commit of a Hugging Face id: 40 hex digits, so that it never moves."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="auto: bfloat16 where it is faster, else float32."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA when present, else the CPU.")


class PoolSettings(Section):
    path: str = Field(
        default="pool", description="Folder of source files, searched recursively for .jsonl, .json, .csv and .parquet."
    )
    max_chars: int = Field(
        default=100_000, ge=100, description="A sample longer than this (characters) is quarantined."
    )
    settle_seconds: float = Field(
        default=2,
        ge=0,
        description="A file that was written to more recently is left for later, because it may be incomplete.",
    )


class ProbeSettings(Section):
    path: str = Field(default="probes", description="Folder or file of candidate probes.")
    count: int = Field(default=48, ge=1, description="Number of probes to draw, evenly over strata.")
    seed: Seed = Field(default=0, description="Seed of the draw of probes, and of the samples that get every probe.")
    near_duplicate: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Two probes with at least this Jaccard similarity of word 3-grams count as the same.",
    )
    budget: Annotated[float, Field(gt=0, lt=1)] | Literal["auto", "exact"] = Field(
        default="auto",
        description="Upper limit of the cost of scoring, as a share of the tokens that all pairs would take. Samples "
        "that are clearly inside or outside the top `selection.fraction` get fewer probes. `exact`: every pair is "
        "computed. `auto`: exact for up to `exact_pairs` pairs, one third for more. Every sample gets a few probes, "
        "and a pilot of 24 or more samples gets all of them.",
    )
    exact_pairs: int = Field(
        default=2_000_000, ge=0, description="With at most this many pairs, `budget: auto` computes all of them."
    )
    error_rate: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="With a budget: how often a sample may be stopped on the wrong side of the cut.",
    )


class ScoringSettings(Section):
    template: Literal["alpaca", "chat"] = Field(
        default="alpaca", description="How samples are written as text for the model."
    )
    separator: str = Field(default="\n\n\n", description="Text between the context and the probe.")
    max_context_tokens: int = Field(
        default=2040,
        ge=1,
        description="Maximum tokens of a sample in the context of a probe. A longer sample is cut at its end.",
    )
    max_prompt_tokens: int = Field(
        default=1024, ge=8, description="Maximum tokens of a prompt. Of a longer one, the end is kept."
    )
    max_response_tokens: int = Field(
        default=1024, ge=1, description="Maximum tokens of a response. Of a longer one, the beginning is kept."
    )
    tokens_per_forward: Annotated[int, Field(ge=64)] | Literal["auto"] = Field(
        default="auto",
        description="Packed tokens per forward, which limits memory. auto: chosen by the free memory of the device.",
    )
    commit_seconds: float = Field(default=30, gt=0, description="Finished pairs are committed at least this often.")
    direct_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the samples that are scored directly, drawn by their ids. A selector can rank the "
        "others. The draw is kept when the pool grows, and a larger share adds to it.",
    )

    @property
    def fixed_tokens_per_forward(self) -> int | None:
        """None for `auto`."""
        return self.tokens_per_forward if isinstance(self.tokens_per_forward, int) else None


class ControlSettings(Section):
    kinds: tuple[ControlKind, ...] = Field(
        default=("none", "random_tokens"), description="Controls to compute scores under."
    )
    primary: ControlKind = Field(default="none", description="The control that views and reports rank by.")
    seed: Seed = Field(default=0, description="Seed of the random contexts.")
    draws: int = Field(default=2, ge=1, le=64, description="Random contexts averaged per length.")
    lengths: tuple[int, ...] = Field(
        default=(32, 256, 2040),
        description="Token lengths at which `random_tokens` is measured; values between them are interpolated.",
    )

    @field_validator("kinds")
    @classmethod
    def _has_none(cls, kinds: tuple[ControlKind, ...]) -> tuple[ControlKind, ...]:
        if "none" not in kinds:
            raise ValueError("must contain 'none': every score divides by the perplexity without context")
        return tuple(dict.fromkeys(kinds))

    @model_validator(mode="after")
    def _computes_primary(self) -> Self:
        if self.primary not in self.kinds:
            raise ValueError(f"primary: {self.primary!r} is not among kinds; add it there")
        return self

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths or any(n < 1 for n in lengths) or list(lengths) != sorted(set(lengths)):
            raise ValueError("must be positive and ascending, such as [16, 64, 256]")
        return lengths


class CombinedSettings(Section):
    rankings: Annotated[tuple[str, ...], AfterValidator(_once)] = Field(
        default=("icon", "rds"),
        min_length=1,
        description="The arms whose rankings are averaged, with equal weight: per probe where an arm has a value for "
        "each probe.",
    )
    ifd_below: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0,
        description="Samples with an IFD from this on come last, because prompt and response do not seem to belong "
        "together; null: all samples are equal in this.",
    )


class SelectionSettings(Section):
    arms: Annotated[tuple[str, ...], AfterValidator(_once)] = Field(
        default=("full", "random", "length_matched", "longest", "icon"),
        min_length=1,
        description="The selection methods to compare. Each arm gets its own subset, checkpoints and results.",
    )
    fraction: float = Field(
        default=0.15, gt=0, le=1, description="Share of the unique samples that every arm but `full` takes."
    )
    seed: Seed = Field(default=0, description="Seed of the random arms.")
    budget: Literal["samples", "tokens"] = Field(
        default="samples",
        description="The unit of `fraction`: samples of the pool, or its training tokens. With tokens, an arm takes "
        "its best samples until the next one would exceed the limit.",
    )
    diversity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="A sample is skipped if the cosine between its embedding and that of a better chosen sample is "
        "above this; null: off.",
    )
    aggregate: Literal["mean", "in_turn"] | None = Field(
        default=None,
        description="How an arm with a value for each probe ranks samples. mean: by their mean over the probes; "
        "in_turn: each probe takes its best sample that is not taken yet; null: contributions by their mean, "
        "similarities in turn.",
    )
    turns: Literal["probes", "strata"] = Field(
        default="probes",
        description="Who takes in turn: each probe, or each stratum by the mean over its probes.",
    )
    combined: CombinedSettings = Field(default=CombinedSettings(), description="What the arm `combined` combines.")
    length_strata: int = Field(default=5, ge=2, description="Length classes of the arm `icon_stratified`.")
    reference: str = Field(default="icon", description="The arm whose length distribution `length_matched` copies.")
    length_warning: float = Field(
        default=0.8,
        gt=0.5,
        le=1,
        description="A selection gets a warning when length alone separates chosen from other samples with an AUC "
        "above this.",
    )


class ClassifierSettings(Section):
    """The paper's selector: base model and LoRA with a trained head. Defaults are the paper's."""

    rank: int = Field(default=8, ge=1, description="Rank of the LoRA matrices.")
    alpha: int = Field(default=8, ge=1, description="Scale of the LoRA update: alpha / rank.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout on the input of the LoRA matrices.")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default=("q_proj", "v_proj"),
        description="Layers that get LoRA matrices, by name; `all-linear`: every linear layer.",
    )
    epochs: int = Field(
        default=5,
        ge=1,
        description="Training epochs. The best one by average precision on a tenth of the samples is kept; metrics are "
        "from a different tenth.",
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate of AdamW.")
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps over which the learning rate rises to its peak."
    )
    batch_size: int = Field(default=128, ge=1, description="Samples per optimizer step.")
    micro_batch_size: int = Field(default=16, ge=1, description="Samples per forward.")


class SelectorSettings(Section):
    kind: Literal["light", "lora"] = Field(
        default="light",
        description="How to rank the pool by what the directly scored samples show. light: ridge regression on the "
        "model's hidden states; lora: the paper's LoRA classifier.",
    )
    control: ControlKind | None = Field(
        default=None, description="The control whose contributions are learned; null: controls.primary."
    )
    top_fraction: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="The share of samples that counts as the best: lora learns to separate it from the rest, and AUC "
        "and average precision are measured for it. It does not depend on selection.fraction. One ranking serves every "
        "fraction, so that selections are nested.",
    )
    samples: int = Field(default=20_000, ge=20, description="Maximum number of directly scored samples to learn from.")
    folds: int = Field(default=5, ge=2, description="light: each sample is predicted by models of the other folds.")
    seed: Seed = Field(default=0, description="Seed of the folds, of the split and of the training.")
    lora: ClassifierSettings = Field(default=ClassifierSettings(), description="How the `lora` selector is trained.")


TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": "full",
        "template": "alpaca",
        "epochs": 3,
        "learning_rate": 2e-5,
        "batch_size": 128,
        "warmup_fraction": 0.03,
        "scheduler": "cosine",
        "max_tokens": 2048,
    },
    "small": {
        "method": "lora",
        "template": "alpaca",
        "epochs": 3,
        "learning_rate": 2e-4,
        "batch_size": 16,
        "warmup_fraction": 0.03,
        "scheduler": "cosine",
        "max_tokens": 1024,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_targets": "all-linear",
    },
}


class TrainingSettings(Section):
    preset: Literal["paper", "small"] | None = Field(
        default=None,
        description="Values for keys that are not given here. paper: full fine-tuning, 3 epochs, AdamW at 2e-5, "
        "batches of 128, 2048 tokens; small: the LoRA recipe for a laptop, 3 epochs, 2e-4, batches of 16, 1024 tokens.",
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(_once)] = Field(
        default=(0, 1),
        min_length=1,
        description="One training per arm and seed. A gain is claimed only with two seeds or more. From 0 to "
        "4294967295, as torch and numpy take them.",
    )
    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: trains small added matrices; full: trains every weight."
    )
    template: Literal["alpaca", "chat"] = Field(
        default="alpaca",
        description="How samples are written as text for training and evaluation; chat: the template of the tokenizer.",
    )
    epochs: float = Field(default=3, gt=0, description="Passes over the subset.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=16, ge=1, description="Samples per optimizer step, over all processes.")
    micro_batch_size: int = Field(
        default=8, ge=1, description="Samples per forward; gradients are accumulated up to batch_size."
    )
    packing: bool = Field(
        default=True,
        description="Put the samples of a forward in one row without padding, where none attends to another. The "
        "gradients are the same in less time.",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto", description="Compute activations again instead of keeping them; auto: on CUDA only."
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="Training processes that share every step; auto: one per CUDA device, one on a CPU."
    )
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps over which the learning rate rises to its peak."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Schedule of the learning rate after the warm-up."
    )
    max_tokens: int = Field(
        default=1024,
        ge=16,
        description="Maximum tokens of prompt and response together. Longer samples are cut at the end.",
    )
    lora_rank: int = Field(default=8, ge=1, description="Rank of the LoRA matrices.")
    lora_alpha: int = Field(default=16, ge=1, description="Scale of the LoRA update: lora_alpha / lora_rank.")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout on the input of the LoRA matrices.")
    lora_targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="Layers that get LoRA matrices, by name; `all-linear`: every linear layer."
    )
    save_every_steps: int = Field(
        default=20, ge=1, description="Steps between saved states, from which a crashed training resumes."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        """Given values win over the preset. An unknown preset is refused with its field."""
        preset = values.get("preset") if isinstance(values, dict) else None
        return {**TRAINING_PRESETS.get(str(preset), {}), **values} if preset else values

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved settings that determine a checkpoint: all but the list of seeds, and how the same gradients are
        computed."""
        return self.model_dump(
            exclude={"preset", "seeds", "save_every_steps", "packing", "gradient_checkpointing", "processes"}
        )


class LocalTask(Section):
    path: str = Field(description="JSON Lines file with `query`, `choices`, `gold`, inside the workspace.")
    name: str = Field(description="Task name in the results.", pattern=r"^[a-z0-9][a-z0-9_]*$")

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in {"held_out", "target", "mean"}:
            raise ValueError("is a name that the leaderboard uses itself; choose a different one")
        return name


class PromptSet(Section):
    path: str = Field(
        description="File of prompts, inside the workspace, in any format of the pool; responses are not needed."
    )
    name: str = Field(description="Name in the results.", pattern=r"^[a-z0-9][a-z0-9_]*$")


class JudgeSettings(Section):
    url: str = Field(
        description="Base address of an OpenAI-compatible service, before `/chat/completions`.",
        pattern=r"^https?://[^\s@?#]+$",
    )
    model: str = Field(description="Name of the judge model at this service.", min_length=1)
    api_key_variable: str | None = Field(
        default=None,
        description="Environment variable that holds the key; null: the service needs none.",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
    )
    options: dict[str, Any] = Field(default={"temperature": 0}, description="Further fields of each request.")
    requests_at_once: int = Field(default=4, ge=1, le=64, description="Number of simultaneous requests to the judge.")

    @field_validator("url")
    @classmethod
    def _has_a_port(cls, url: str) -> str:
        if not urlsplit(url).hostname or urlsplit(url).port == 0:  # other invalid ports raise a ValueError of their own
            raise ValueError("has no host, or an invalid port")
        return url

    @field_validator("options")
    @classmethod
    def _are_json(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            canonical_json(options)
        except TypeError as error:
            raise ValueError(f"{error}; write it as text") from None
        return options


class PairwiseSettings(Section):
    prompts: tuple[PromptSet, ...] = Field(min_length=1, description="The sets of prompts to answer.")
    judge: JudgeSettings = Field(description="The language model that compares two answers.")
    against: str = Field(default="random", description="The arm that every other arm is compared with.")
    max_new_tokens: int = Field(default=512, ge=1, description="Maximum tokens of an answer. A longer one is cut.")
    limit: int | None = Field(default=None, ge=1, description="Prompts per set, from the start; null: all.")
    timeout_seconds: float = Field(
        default=60, gt=0, description="Limit for each whole request to the judge, up to the last byte of its reply."
    )

    @field_validator("prompts")
    @classmethod
    def _names_differ(cls, prompts: tuple[PromptSet, ...]) -> tuple[PromptSet, ...]:
        _once(tuple(each.name for each in prompts))
        return prompts


class TargetSettings(Section):
    """The sealed test of the task that one cares about."""

    samples: str | None = Field(default=None, description="File of samples of the task; their perplexity is reported.")
    choices: str | None = Field(
        default=None, description="File of the task's items with `query`, `choices`, `gold`; accuracy is reported."
    )

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if not self.samples and not self.choices:
            raise ValueError("names no file; set samples, choices or both, or take the target out")
        return self


class EvaluationSettings(Section):
    multiple_choice: tuple[LocalTask, ...] = Field(
        default=(), description="Multiple-choice tasks of your own; accuracy is reported."
    )
    held_out: str | None = Field(
        default="eval/held_out.jsonl", description="File of samples whose perplexity is reported."
    )
    target: TargetSettings | None = Field(
        default=None,
        description="A sealed test of the task you care about. Nothing is scored, chosen or trained by it. Every "
        "comparison of new results on it is a look, and its intervals widen with the looks.",
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="Further tasks by their lm-evaluation-harness name (need a network)."
    )
    limit: int | None = Field(default=None, ge=1, description="Items per task; null: all.")
    batch_size: int = Field(default=16, ge=1, description="Items per forward of the evaluation.")
    bootstrap_draws: int = Field(default=10_000, ge=100, description="Resamples behind each interval of a difference.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence level of intervals and verdicts.")
    pairwise: PairwiseSettings | None = Field(
        default=None,
        description="Answers to prompts, compared between arms by a language model as judge; null: not done.",
    )

    @field_validator("multiple_choice")
    @classmethod
    def _names_differ(cls, tasks: tuple[LocalTask, ...]) -> tuple[LocalTask, ...]:
        _once(tuple(each.name for each in tasks))
        return tasks

    @model_validator(mode="after")
    def _tasks_differ(self) -> Self:
        _once((*(each.name for each in self.multiple_choice), *self.tasks))
        return self


class ChecksSettings(Section):
    content_rows: int = Field(
        default=1_000_000,
        ge=0,
        description="A product with at most this many rows is compared with the ledger at every check (about two "
        "seconds). Of a larger one, only files that changed since the last comparison are read. `icon-assets verify` "
        "compares everything.",
    )


class AutomationSettings(Section):
    scoring: Literal["nightly", "on_change", "off"] = Field(
        default="nightly",
        description="What starts scoring while `icon-assets ui` or Dagster's daemon runs. nightly: a schedule; "
        "on_change: changes of the pool folder and of other inputs of the scores; off: only you.",
    )
    cron: str = Field(default="0 2 * * *", description="When `nightly` starts, as a cron expression.")
    time_zone: str = Field(default="UTC", description="Time zone of `cron`, such as Europe/Berlin.")
    discover_seconds: int = Field(default=30, ge=5, description="Seconds between two looks at the pool folder.")
    train: bool = Field(default=False, description="Whether training and evaluation start by themselves, too.")

    @field_validator("time_zone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError("is no IANA time zone, such as Europe/Berlin")
        return name


class SqlSettings(Section):
    """Limits of one query of `icon-assets sql`."""

    timeout_seconds: float = Field(
        default=300, gt=0, description="The query is stopped after this time; `--timeout` overrides it."
    )
    memory: Annotated[ByteSize, Field(ge=2**25)] | Literal["auto"] = Field(
        default="auto",
        description="Memory limit, such as 8GB: once for the query and once for its result. auto: half of the free "
        "memory.",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="auto: one per processor."
    )
    temp_space: ByteSize | Literal["auto"] = Field(
        default="auto",
        description="Limit in the directory for temporary files (TMPDIR), such as 50GB. auto: half of its free space.",
    )


class UiSettings(Section):
    """Access to `icon-assets ui`. Anyone who can reach it can run code as you."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on. The port is an option of the command."
    )
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$")], ...] = Field(
        default=(),
        description="Further host names under which browsers reach it, such as that of a proxy: `icon.example.com`, "
        "`icon.example.com:8443`.",
    )
    token: SecretStr = Field(
        default=SecretStr("auto"),
        description="The token that users need. auto: a new token at every start where `host` is reachable from other "
        "machines, else none; always: a new token at every start; never: none, because a proxy controls access; "
        "anything else is the token itself.",
    )

    @field_validator("token")
    @classmethod
    def _is_hard_to_guess(cls, token: SecretStr) -> SecretStr:
        """Only characters that need no escaping in a URL or a cookie."""
        value = token.get_secret_value()
        if value not in TOKEN_MODES and not re.fullmatch(r"[A-Za-z0-9._~-]{16,256}", value):
            raise ValueError(f"must be {', '.join(TOKEN_MODES)}, or 16 to 256 of the characters A-Z a-z 0-9 . _ ~ -")
        return token


class Settings(BaseSettings):
    """All settings of one workspace."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
    )

    model: ModelSettings = Field(default=ModelSettings(), description="The base model.")
    pool: PoolSettings = Field(default=PoolSettings(), description="The instruction data to select from.")
    probes: ProbeSettings = Field(
        default=ProbeSettings(),
        description="The tasks that contributions are measured on, and how much to spend on measuring.",
    )
    scoring: ScoringSettings = Field(default=ScoringSettings(), description="How samples and probes are scored.")
    controls: ControlSettings = Field(
        default=ControlSettings(), description="The controls that a sample in the context is compared with."
    )
    selector: SelectorSettings = Field(
        default=SelectorSettings(), description="The model that learns to predict contributions."
    )
    selection: SelectionSettings = Field(default=SelectionSettings(), description="Which samples each arm takes.")
    training: TrainingSettings = Field(default=TrainingSettings(), description="How a subset becomes a checkpoint.")
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="How checkpoints are measured and compared."
    )
    automation: AutomationSettings = Field(default=AutomationSettings(), description="What starts automatically.")
    checks: ChecksSettings = Field(default=ChecksSettings(), description="How much the checks read.")
    sql: SqlSettings = Field(default=SqlSettings(), description="Limits of one query of `icon-assets sql`.")
    ui: UiSettings = Field(default=UiSettings(), description="Access to `icon-assets ui`.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Source,
        env_settings: Source,
        dotenv_settings: Source,
        file_secret_settings: Source,
    ) -> tuple[Source, ...]:
        """The environment wins over the file. Nothing else is read."""
        return env_settings, init_settings
