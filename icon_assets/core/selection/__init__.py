"""Arms: which samples each of them chooses, and why.

Belongs here: candidates, the registry of arms, the arms, the choice. Does not belong here: computing scores or
features. Data comes as scores and features and leaves as subsets. Importing this package registers the arms.
"""

from icon_assets.core.selection import arms  # noqa: F401  (registers the arms)
