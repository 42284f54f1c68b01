"""Strings that try to be more than text where they are shown, and a workspace in which every string of data is one of
them."""

import json
import shutil
from pathlib import Path
from typing import Any

from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, TRAINING, alpaca, lay_out, write_jsonl

HOST = "evil.example"
MUTATION = "/graphql?query=mutation{launch}"
AS_REPORTED = f"a` ![d]({MUTATION}) `b"

MARKDOWN = [
    AS_REPORTED,
    f"![d]({MUTATION})",
    f"a`` ![d]({MUTATION}) ``b",
    f"\\`![d]({MUTATION})\\`",
    f"\\![d]({MUTATION})",
    f"\\| ![d]({MUTATION}) |",
    f"[x](http://{HOST}/x)",
    f"[x](<//{HOST}> 'title')",
    f"![x](//{HOST}/x.png)",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](data:text/html,x)",
    f"[r]\n\n[r]: http://{HOST}/r",
    f"![d][r]\n\n[r]: {MUTATION}",
    f"x[^1]\n\n[^1]: ![d]({MUTATION})",
    f"| a |\n|---|\n| ![d]({MUTATION}) |",
    f'```mermaid\nclick a "http://{HOST}"\n```',
    f"``` ![d]({MUTATION})",
    "~~~ sh",
    f"$$\\href{{http://{HOST}}}{{x}}$$",
    "$x$ **bold** *it* _it_ __bold__ ~~gone~~ ~gone~",
    "# heading",
    "> quote",
    "- item",
    "+ item",
    "* item",
    "1. item",
    "12) item",
    "---",
    "===",
    "- [ ] task",
    f"    ![d]({MUTATION})",
    f"\t![d]({MUTATION})",
]
ADDRESSES = [
    f"http://{HOST}/x",
    f"see HTTPS://{HOST}.",
    f"(http://{HOST})",
    f"ftp://{HOST}/x",
    f"www.{HOST}/x",
    f"WWW.{HOST}",
    f"me@{HOST}",
    f"mailto:me@{HOST}",
    f"xmpp:me@{HOST}/x",
    f"http://user:password@{HOST}:80/x",
    f"*http://{HOST}*",
    f"`http://{HOST}`",
    f"http&#58;//{HOST}",
    f"http&colon;//{HOST}",
    f"http:\\//{HOST}",
    f"www&period;{HOST}",
    f"me&commat;{HOST}",
]
HTML = [
    f"<img src={MUTATION} onerror=alert(1)>",
    f'"><img src=//{HOST}/x>',
    f"<script src=//{HOST}></script>",
    f"<a href=http://{HOST}>x</a>",
    f"<http://{HOST}/x>",
    f"<me@{HOST}>",
    "<!-- hidden -->",
    "<details open ontoggle=alert(1)>",
    f"<iframe src=//{HOST}>",
    "<?php ?>",
    "<![CDATA[x]]>",
    "&lt;b&gt;",
    f"&#33;&#91;d&#93;&#40;{MUTATION}&#41;",
    "&excl;&lsqb;d&rsqb;",
    "</div></td></table>",
    f"<style>@import '//{HOST}'",
    "<svg onload=alert(1)>",
    f"<base href=//{HOST}>",
    f"<meta http-equiv=refresh content='0;//{HOST}'>",
]
INVISIBLE = [
    "a\u200bb\u2060c\ufeffd",
    "\u202egnp.exe\u202c",
    "\u2066x\u2069",
    "so\u00adft",
    "tag\U000e0041\U000e007f",
    "\u3164",
    "v\ufe0fs",
    "e\x1b[31m",
]
HIDING = [f"ht\u200btp://{HOST}", f"w\u200bww.{HOST}", f"!\u200b[d]({MUTATION})", f"<\u200bimg src=//{HOST}>"]
CORPUS = [*MARKDOWN, *ADDRESSES, *HTML, *INVISIBLE, *HIDING]


def strange(path: str) -> str:
    """A relative path that is an injection; what stands before its slash is a folder."""
    return f"a` ![d](/graphql?query=mutation{{launch}}) `{path}"


def lay_out_injections(root: Path, model_dir: Path, judge_url: str) -> Workspace:
    """A workspace of few rows: names of files, fields, roles, strata, model and judge, and the texts, are
    injections."""
    model = root / strange("model")
    shutil.copytree(model_dir, model)
    workspace = lay_out(
        root,
        model,
        {strange("pool.jsonl"): [*_pool(), *map(_unusable, CORPUS)]},
        probes={"count": 24, "near_duplicate": 1.0},
        selection={"arms": ["random", "icon"], "fraction": 0.5},
        training=TRAINING,
        evaluation={
            "multiple_choice": [{"name": "sums", "path": "eval/sums.jsonl"}],
            "held_out": f"eval/{strange('held_out.jsonl')}",
            "pairwise": {
                "prompts": [{"name": "talk", "path": f"eval/{strange('talk.jsonl')}"}],
                "judge": {"url": judge_url, "model": AS_REPORTED},
                "max_new_tokens": 4,
                "limit": 1,
            },
        },
    )
    (root / "probes" / "probes.jsonl").unlink()
    probes = [alpaca(f"Probe {n}: {text}", f"{text} {n}", stratum=text) for n, text in enumerate(CORPUS)]
    write_jsonl(root / "probes" / strange("probes.jsonl"), [*probes, dict.fromkeys(CORPUS[:2], 1), POOL_A[0]])
    held_out = [alpaca(f"Held out {n}", text, stratum=text) for n, text in enumerate(CORPUS[:4])]
    write_jsonl(root / "eval" / strange("held_out.jsonl"), [*held_out, _unusable(CORPUS[0])])
    write_jsonl(root / "eval" / strange("talk.jsonl"), [{"prompt": text} for text in CORPUS[:2]])
    return workspace


def leak(workspace: Workspace) -> None:
    """Put a sample of the pool into the evaluation data, which a check of the pool, read again, then names."""
    held_out = workspace.root / str(workspace.settings.evaluation.held_out)
    for path, row in ((held_out, _pool()[1]), (workspace.root / "pool" / strange("pool.jsonl"), _unusable("one more"))):
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


def _pool() -> list[dict[str, Any]]:
    """Usable rows, the first of which is a probe, too; and a role that is none."""
    usable = [alpaca(f"{n} {text}", f"{text} {n}", **{text: text}) for n, text in enumerate(CORPUS[:8])]
    role = {"messages": [{"role": AS_REPORTED, "content": "x"}, {"role": "assistant", "content": "y"}]}
    return [POOL_A[0], *usable, role]


def _unusable(text: str) -> dict[str, Any]:
    return {text: 1}
