-- The tables of the store: names, column types and meaning. Delta schemas and the published views are made from this file.
-- Timestamps are UTC. Ids and digests are 32 hex characters.

CREATE TABLE shards (
    shard VARCHAR, file VARCHAR, digest VARCHAR, n_bytes BIGINT, mtime_ns BIGINT, n_samples BIGINT, n_quarantined BIGINT,
    ingested_at TIMESTAMPTZ, removed_at TIMESTAMPTZ
);
COMMENT ON TABLE shards IS 'One row per source file of the pool that was ingested.';
COMMENT ON COLUMN shards.mtime_ns IS 'When the file was last written to, in nanoseconds since 1970: it is read again only when this or its size changes.';

CREATE TABLE samples (
    shard VARCHAR, file VARCHAR, "row" BIGINT, sample_id VARCHAR, instruction VARCHAR, "input" VARCHAR, response VARCHAR,
    turns VARCHAR, n_chars BIGINT, metadata VARCHAR
);
COMMENT ON TABLE samples IS 'One row per usable row of a source file, in canonical form. Equal content has equal sample_id.';
COMMENT ON COLUMN samples."row" IS 'Place in the file, from 1: the line of a .jsonl, the record of a .json, .csv (header not counted) or .parquet.';
COMMENT ON COLUMN samples.turns IS 'Earlier turns of a chat as JSON [[role, content], ...], or NULL.';
COMMENT ON COLUMN samples.metadata IS 'Fields of the source row that are not part of the sample, as JSON.';

CREATE TABLE quarantine (shard VARCHAR, file VARCHAR, "row" BIGINT, reason VARCHAR, detail VARCHAR, excerpt VARCHAR);
COMMENT ON TABLE quarantine IS 'Rows that could not be used, with the reason; row 0 means the whole file.';
COMMENT ON COLUMN quarantine.reason IS 'Of a row: missing_field wrong_type empty_prompt empty_response over_limit not_utf8 control_chars duplicate_key bad_json bad_csv bad_parquet. Of a file also: empty_file wrong_format missing unreadable not_a_file outside_folder.';
COMMENT ON COLUMN quarantine.detail IS 'The fault; also if no later row of the file could be read.';

CREATE TABLE probe_candidates (
    probe_id VARCHAR, stratum VARCHAR, instruction VARCHAR, "input" VARCHAR, response VARCHAR, turns VARCHAR,
    file VARCHAR, "row" BIGINT, status VARCHAR, detail VARCHAR
);
COMMENT ON TABLE probe_candidates IS 'Every candidate probe and its verdict: selected, spare, near_duplicate, duplicate, in_pool, in_evaluation, quarantined.';

CREATE TABLE models (
    model_digest VARCHAR, "name" VARCHAR, revision VARCHAR, path VARCHAR, dtype VARCHAR, device VARCHAR, n_parameters BIGINT,
    prepared_at TIMESTAMPTZ
);
COMMENT ON TABLE models IS 'Models that were prepared in this workspace; path is relative to it.';

CREATE TABLE score_keys (score_key VARCHAR, model_digest VARCHAR, settings VARCHAR, created_at TIMESTAMPTZ);
COMMENT ON TABLE score_keys IS 'The meaning of each score_key: model, tokenizer, template, limits, dtype and scoring version.';

CREATE TABLE contexts (score_key VARCHAR, sample_id VARCHAR, origin VARCHAR, n_context_tokens BIGINT, n_context_chars BIGINT, truncated BOOLEAN);
COMMENT ON TABLE contexts IS 'How long each scored sample is as a context under a score_key.';
COMMENT ON COLUMN contexts.origin IS 'The shard under which the sample was first scored: its pairs stay there, even if the sample moves.';

CREATE TABLE pair_scores (score_key VARCHAR, origin VARCHAR, sample_id VARCHAR, probe_id VARCHAR, nll_sum DOUBLE, n_tokens BIGINT);
COMMENT ON TABLE pair_scores IS 'NLL of a probe''s response behind a sample as context: nats, summed over n_tokens response tokens.';

CREATE TABLE control_scores (
    score_key VARCHAR, probe_id VARCHAR, control VARCHAR, seed BIGINT, "length" BIGINT, n_context_tokens BIGINT,
    nll_sum DOUBLE, n_tokens BIGINT, truncated BOOLEAN
);
COMMENT ON TABLE control_scores IS 'NLL of a probe without context (control none) and behind random contexts.';
COMMENT ON COLUMN control_scores."length" IS 'Length in the control''s own unit: 0 for none, tokens for random_tokens, characters for random_chars.';
COMMENT ON COLUMN control_scores.truncated IS 'Whether the probe itself was cut to the limits.';

CREATE TABLE sample_scores (
    shard VARCHAR, score_key VARCHAR, control VARCHAR, sample_id VARCHAR, contribution DOUBLE, consistency DOUBLE,
    stability DOUBLE, coverage DOUBLE, significance DOUBLE, standard_error DOUBLE, n_probes BIGINT, n_context_tokens BIGINT, truncated BOOLEAN
);
COMMENT ON TABLE sample_scores IS 'One sample''s contribution under one control, over the current probe set.';
COMMENT ON COLUMN sample_scores.contribution IS 'Mean over probes of (PPL(S|control) - PPL(S|T)) / (PPL(S) + 1e-6); an estimate of it where standard_error > 0.';
COMMENT ON COLUMN sample_scores.consistency IS 'Share of the scored probes with influence > 0.';
COMMENT ON COLUMN sample_scores.stability IS 'Population variance of the influence over probes.';
COMMENT ON COLUMN sample_scores.coverage IS 'Share of the scored probes with influence > 0.5.';
COMMENT ON COLUMN sample_scores.significance IS '2 / (1 + exp(-50 x)) - 1 of the contribution x, clamped to -1 / 1 beyond -0.5 / 0.5. Ties at the top: never rank by it.';

COMMENT ON COLUMN sample_scores.standard_error IS 'Of the contribution over the whole probe set: 0 when every probe was scored; above it in budgeted mode.';

CREATE TABLE scoring_costs (
    created_at TIMESTAMPTZ, score_key VARCHAR, "work" VARCHAR, device VARCHAR, engine VARCHAR, pairs BIGINT, forwards BIGINT,
    tokens BIGINT, flops BIGINT, seconds DOUBLE, peak_flops_per_second DOUBLE
);
COMMENT ON TABLE scoring_costs IS 'The cost of scoring: one row per commit, so that a killed run counts too.';
COMMENT ON COLUMN scoring_costs."work" IS 'pairs: candidates; controls: probes without context and behind random contexts; features: one pass per sample (pairs counts samples); selector: training of the lora one and its passes over the pool (pairs counts passes of a sample).';
COMMENT ON COLUMN scoring_costs.flops IS 'Useful floating-point operations: no padding, nothing elementwise.';
COMMENT ON COLUMN scoring_costs.peak_flops_per_second IS 'Large matrix products on this device in this dtype, measured in the same process.';

CREATE TABLE sample_features (
    score_key VARCHAR, origin VARCHAR, sample_id VARCHAR, n_tokens BIGINT, nll_sum DOUBLE, nll_alone DOUBLE, truncated BOOLEAN,
    embedding FLOAT[]
);
COMMENT ON TABLE sample_features IS 'One pass of the model over each sample, taken as a probe without context. IFD is exp((nll_sum - nll_alone) / n_tokens).';
COMMENT ON COLUMN sample_features.origin IS 'The shard under which the sample was first read: its row stays there, even if the sample moves.';
COMMENT ON COLUMN sample_features.nll_sum IS 'NLL of the response given its prompt: nats, summed over n_tokens response tokens.';
COMMENT ON COLUMN sample_features.nll_alone IS 'NLL of the same tokens without the prompt. Where the tokenizer opens no text with a BOS, nothing predicts the first of them: it counts as behind the prompt, so that it cancels in IFD.';
COMMENT ON COLUMN sample_features.embedding IS 'Mean of the last hidden states over prompt and response, weighted by position 1, 2, ..., n.';

CREATE TABLE probe_features (score_key VARCHAR, probe_id VARCHAR, embedding FLOAT[]);
COMMENT ON TABLE probe_features IS 'The embedding of each probe, as in sample_features.';

CREATE TABLE selectors (
    selector_id VARCHAR, kind VARCHAR, model_digest VARCHAR, control VARCHAR, n_train BIGINT, n_held_out BIGINT, path VARCHAR,
    digest VARCHAR, settings VARCHAR, created_at TIMESTAMPTZ
);
COMMENT ON TABLE selectors IS 'Models that learned to predict contribution from directly scored samples; path is relative to the workspace.';
COMMENT ON COLUMN selectors.n_held_out IS 'Samples that its metrics are measured on, each predicted by a model that was neither trained on it nor chosen by it.';

CREATE TABLE selector_metrics (selector_id VARCHAR, predictor VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE);
COMMENT ON TABLE selector_metrics IS 'How well a selector predicts contribution on held-out samples, with 95 % bootstrap intervals; length and random for comparison.';
COMMENT ON COLUMN selector_metrics.metric IS 'spearman; auc and average_precision for the top fraction; partial_spearman: rank correlation once length is taken out of both; of lora top_share_trained_on and top_share_held_out: the share of such samples in the top fraction of both together, equal where training gives no advantage.';

CREATE TABLE predicted_scores (shard VARCHAR, selector_id VARCHAR, sample_id VARCHAR, score DOUBLE);
COMMENT ON TABLE predicted_scores IS 'The current selector''s score of every sample of the pool; of samples that light was trained on by a model that had not seen them; lora ranks those too high (selector_metrics, top_share_trained_on).';

CREATE TABLE selections (subset_id VARCHAR, arm VARCHAR, sample_id VARCHAR, "rank" BIGINT, score DOUBLE, reason VARCHAR);
COMMENT ON TABLE selections IS 'The samples each arm chose, best first. Earlier subsets stay, because checkpoints refer to them.';

CREATE TABLE trust_figures (
    subset_id VARCHAR, arm VARCHAR, figure VARCHAR, against VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, detail VARCHAR
);
COMMENT ON TABLE trust_figures IS 'How far to trust a selection: what else explains it, and how much of it a redraw would keep.';
COMMENT ON COLUMN trust_figures.figure IS 'length_auc length_spearman nestedness probe_overlap control_overlap stratum_share near_duplicates arm_overlap.';
COMMENT ON COLUMN trust_figures.against IS 'What it is compared with: a length, a fraction, other probes, a control, a stratum or another arm.';
COMMENT ON COLUMN trust_figures.low IS 'Lower end of the interval of 95 %, NULL where the figure is exact or of one comparison; beside a stratum: of what chance gives.';
COMMENT ON COLUMN trust_figures.detail IS 'The value to compare the figure with, in words.';

CREATE TABLE checkpoints (
    checkpoint_id VARCHAR, arm VARCHAR, seed BIGINT, subset_id VARCHAR, model_digest VARCHAR, path VARCHAR, digest VARCHAR,
    n_samples BIGINT, n_tokens BIGINT, n_response_tokens BIGINT, n_steps BIGINT, seconds DOUBLE, final_loss DOUBLE,
    flops BIGINT, settings VARCHAR, created_at TIMESTAMPTZ
);
COMMENT ON TABLE checkpoints IS 'Fine-tuned checkpoints; path is relative to the workspace. Tokens and FLOPs count every epoch.';

CREATE TABLE checkpoint_samples (
    checkpoint_id VARCHAR, sample_id VARCHAR, shard VARCHAR, file VARCHAR, "row" BIGINT, "rank" BIGINT, score DOUBLE
);
COMMENT ON TABLE checkpoint_samples IS 'The manifest of each checkpoint: every source line it was trained on.';

CREATE TABLE loss_curves (checkpoint_id VARCHAR, step BIGINT, loss DOUBLE, learning_rate DOUBLE);
COMMENT ON TABLE loss_curves IS 'Training loss per optimizer step: nats per response token.';

CREATE TABLE eval_results (
    checkpoint_id VARCHAR, arm VARCHAR, seed BIGINT, task VARCHAR, metric VARCHAR, value DOUBLE, stderr DOUBLE
);
COMMENT ON TABLE eval_results IS 'One metric of one task for one checkpoint; arm base is the model before fine-tuning.';

CREATE TABLE eval_items (checkpoint_id VARCHAR, task VARCHAR, metric VARCHAR, item BIGINT, value DOUBLE, weight DOUBLE);
COMMENT ON TABLE eval_items IS 'The items of a metric of a checkpoint: it is sum(value) / sum(weight) over them.';
COMMENT ON COLUMN eval_items.item IS 'Row of the held-out file, from 1; of a task its item''s number, from 0.';
COMMENT ON COLUMN eval_items.value IS 'acc, acc_norm: 0 or 1. nll_per_token: NLL in nats, summed over weight response tokens.';

CREATE TABLE leaderboard_differences (
    arm VARCHAR, against VARCHAR, task VARCHAR, metric VARCHAR, difference DOUBLE, low DOUBLE, high DOUBLE, n_seeds BIGINT, verdict VARCHAR,
    n_items BIGINT, p_value DOUBLE, n_comparisons BIGINT
);
COMMENT ON TABLE leaderboard_differences IS 'Each arm against the arms that it must beat: difference of the means over seeds, with a bootstrap interval over items and seeds.';
COMMENT ON COLUMN leaderboard_differences.task IS 'mean: the mean over all tasks that have this metric by item, each weighing the same.';
COMMENT ON COLUMN leaderboard_differences.difference IS 'arm minus against, in the unit of the metric. Of nll_per_token and perplexity less is better.';
COMMENT ON COLUMN leaderboard_differences.low IS 'Lower end of the interval of this comparison alone, at evaluation.confidence.';
COMMENT ON COLUMN leaderboard_differences.n_seeds IS 'Seeds that both arms have. With one, the interval does not include the variance over seeds.';
COMMENT ON COLUMN leaderboard_differences.verdict IS 'better, worse, not distinguishable: by p_value after Holm''s correction for n_comparisons.';
COMMENT ON COLUMN leaderboard_differences.n_comparisons IS 'Comparisons with the same arm that the verdict is corrected for: over arms and both headline metrics, or over arms, tasks and strata of one metric.';

CREATE TABLE answers (
    checkpoint_id VARCHAR, arm VARCHAR, seed BIGINT, prompt_set VARCHAR, prompt_id VARCHAR, prompt VARCHAR, answer VARCHAR, n_tokens BIGINT,
    finished BOOLEAN, answer_key VARCHAR
);
COMMENT ON TABLE answers IS 'Answers of a checkpoint to the prompts of evaluation.pairwise: greedy, so always the same.';
COMMENT ON COLUMN answers.prompt_id IS 'Digest of the prompt, as sample_id is of a sample.';
COMMENT ON COLUMN answers.finished IS 'Whether the model ended the answer itself, before max_new_tokens.';
COMMENT ON COLUMN answers.answer_key IS 'Digest of the settings it was generated under.';

CREATE TABLE judgements (
    checkpoint_id VARCHAR, other_id VARCHAR, prompt_set VARCHAR, prompt_id VARCHAR, swapped BOOLEAN, verdict VARCHAR, judge VARCHAR,
    detail VARCHAR, created_at TIMESTAMPTZ, question VARCHAR
);
COMMENT ON TABLE judgements IS 'The judge''s verdicts on two answers to one prompt, once in each order. Appended one by one, so that nothing is asked twice.';
COMMENT ON COLUMN judgements.swapped IS 'false: the answer of checkpoint_id was shown first, as A; true: that of other_id.';
COMMENT ON COLUMN judgements.verdict IS 'A, B, tie; unreadable: the judge never answered in the requested form.';
COMMENT ON COLUMN judgements.detail IS 'The end of the judge''s reply.';
COMMENT ON COLUMN judgements.question IS 'Digest of everything that the judge was shown, and of the judge.';

CREATE TABLE pairwise_results (
    checkpoint_id VARCHAR, other_id VARCHAR, arm VARCHAR, against VARCHAR, seed BIGINT, prompt_set VARCHAR, n BIGINT, wins BIGINT, ties BIGINT,
    losses BIGINT, win_rate DOUBLE, low DOUBLE, high DOUBLE, unreadable BIGINT, judge VARCHAR
);
COMMENT ON TABLE pairwise_results IS 'Answers of an arm against those of a second arm with the same seed, by a judge: a win or a loss only if both orders agree, else a tie.';
COMMENT ON COLUMN pairwise_results.win_rate IS '(wins + ties / 2) / n, with Wilson''s interval at evaluation.confidence.';
COMMENT ON COLUMN pairwise_results.unreadable IS 'Pairs, not included in n, without a readable verdict of the judge.';

CREATE TABLE ledger (
    event_id VARCHAR, created_at TIMESTAMPTZ, asset VARCHAR, "partition" VARCHAR, digest VARCHAR, fingerprint VARCHAR,
    inputs VARCHAR, settings VARCHAR, seed BIGINT, code_version VARCHAR, run_id VARCHAR, summary VARCHAR
);
COMMENT ON TABLE ledger IS 'Append-only: what was produced, from which inputs (JSON with their digests), how, when and by which run.';
