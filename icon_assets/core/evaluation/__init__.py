"""From a checkpoint to metrics, and from metrics to verdicts.

Belongs here: metrics, the evaluation harness, held-out perplexity, answers and their judge, comparison of arms, the
leaderboard. Does not belong here: training, selection, plots and pages. Data comes as models and evaluation items and
leaves as results."""
