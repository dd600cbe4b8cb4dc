"""Fuzz one target, guided by coverage: `hostile_fuzz.py TARGET SECONDS FOLDER [OPTION…]`.

What is found new goes to FOLDER, and so does what crashes, under the names of libFuzzer. Options
are libFuzzer's, such as -merge=1.
"""

import shlex
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bilevel_data", "bilevel_apps", "yaml", "zipfile", "PIL"]):
    from reliability.hostile_targets import CORPUS, TARGETS


def main():
    name, seconds, folder, *options = sys.argv[1:]
    target, new = TARGETS[name], Path(folder)
    new.mkdir(parents=True, exist_ok=True)
    for k, seed in enumerate(target.seeds()):
        (new / f"seed-{k}").write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=8192",
        "-print_final_stats=1",
        f"-artifact_prefix={new}/",
    ]
    corpora = [str(new), str(CORPUS / name)]
    again = shlex.join([sys.executable, str(Path(__file__).resolve()), *sys.argv[1:4]])
    atheris.Setup([again, *limits, *options, *corpora], target.run)  # merging starts it again
    atheris.Fuzz()


if __name__ == "__main__":
    main()
