"""Shell text as people have it: the one command in it, and its options."""

from __future__ import annotations

import pytest

from trainers.settings import ConfigError
from trainers.shell import options, read_command, read_commands

SCRIPTS = ("train_it.py", "tool")


def command(text):
    found = read_command(text, SCRIPTS)
    assert found is not None
    return found


def test_a_command_over_many_lines():
    found = command(
        "#!/bin/bash\n# the author's notes: don't read\n\nA_PATH=../../.. \\\nCUDA_VISIBLE_DEVICES=0,1 \\  \n"
        "torchrun --nproc_per_node=4 some/where/train_it.py \\\n  --csv data.csv \\\r\n  --size 4 # why\n"
    )
    assert found.script == "train_it.py"
    assert found.arguments == ("--csv", "data.csv", "--size", "4")
    assert found.environment == {"A_PATH": "../../..", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert found.processes == 4


@pytest.mark.parametrize(
    ("line", "processes"),
    [
        ("python train_it.py --a 1", 1),
        ("$ python3 -u train_it.py --a 1", 1),
        ("python -m tools.cli.train_it --a 1", 1),
        ("accelerate launch --num_processes 2 train_it.py --a 1", 2),
        ("torchrun --nproc-per-node 3 -m tools.train_it --a 1", 3),
        ("torchrun --nproc_per_node gpu train_it.py --a 1", 1),
        ("cd tool && pip install '.[all]' && python train_it.py --a 1 2>&1 | tee log.txt", 1),
        ("python train_it.py --a 1 > log.txt &", 1),
        ("python C:\\tools\\train_it.py ^\r\n  --a 1", 1),
        ("python train_it.py `\n  --a 1", 1),
        ("python train_it.py \\ --a 1", 1),
        ("python train_it.py --a 1 \\", 1),
        ("tool --a 1", 1),
        ("python -m some.door tool --a 1", 1),
        ("export B=2\nenv C=3 python train_it.py --a 1", 1),
    ],
)
def test_launchers_and_shells(line, processes):
    found = command(line)
    assert found.arguments == ("--a", "1")
    assert found.processes == processes


def test_quotes_escapes_and_variables():
    found = command(
        "DATA=my/data; NAME='a b'\n"
        'python train_it.py --prompt "it\'s \\"so\\" $NAME" --single \'no $NAME, .*\\.0\' --path ${DATA}/x.csv '
        "--regex .*motion_modules.* --spaced my\\ folder --drive I:\\data\\x.csv --relative models\\a.ckpt"
    )
    assert options(found.arguments) == {
        "prompt": 'it\'s "so" a b',
        "single": "no $NAME, .*\\.0",
        "path": "my/data/x.csv",
        "regex": ".*motion_modules.*",
        "spaced": "my folder",
        "drive": "I:/data/x.csv",
        "relative": "models/a.ckpt",
    }


def test_what_is_no_such_command():
    for text in (
        "",
        "a: 1\nb: it's\n",
        "python other.py --a 1",
        "cd tool && make",
        "tool install",
        "train_it is a word",
        "The script train_it.py takes 66 options.",
    ):
        assert read_command(text, SCRIPTS) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("python train_it.py --a 1\npython train_it.py --a 2", "there are 2 commands in this text"),
        ("python train_it.py --a $WHERE/x", "the command uses $WHERE, which the text does not set"),
        ("python train_it.py --a $(pwd)/x", "the command uses $(...), which the text does not set"),
        ('python train_it.py --a "$(cat list.txt)"', "the command uses $(...), which the text does not set"),
        ("python train_it.py --a 1 \\\n --b 'open", "the quote in line 2 of the command is not closed"),
    ],
)
def test_a_command_that_cannot_be_read(text, says):
    with pytest.raises(ConfigError) as caught:
        read_command(text, SCRIPTS)
    assert says in str(caught.value)


def test_options_in_every_form():
    words = ["--a", "1", "--b=2", "--c", "--d", "x", "y", "--e-f", "-1", "--a", "3", "--g=", "--h=i=j"]
    given = {"a": "3", "b": "2", "c": True, "d": ["x", "y"], "e_f": "-1", "g": "", "h": "i=j"}
    assert options(words) == given
    with pytest.raises(ConfigError, match="'loose' stands where an option"):
        options(["loose", "--a", "1"])


# --- as scripts and documents have it ---------------------------------------------------------------------------------


def test_a_command_that_a_document_explains_line_by_line():
    found = command(
        "export A=1\n\n# Why.\n\naccelerate launch --config_file one.yaml --multi_gpu \\\n\n# Starts it.\n\n"
        'where/train_it.py \\\n\n# The `script`: don\'t quote.\n\n--a "x:::y" \\\r\n\r\n# Both.\r\n\r\n--flag \\\n\n'
        "# The last one.\n\n"
    )
    assert options(found.arguments) == {"a": "x:::y", "flag": True}
    assert found.launched_with("config_file") == "one.yaml"
    assert found.launched_with("num_processes") is None
    assert found.environment == {"A": "1"}


def test_what_follows_an_ended_command_is_no_part_of_it():
    assert command("python train_it.py --a 1 \\\n\n# next\n\necho --b 2\n").arguments == ("--a", "1")


def test_lists_of_words():
    found = command(
        '#!/usr/bin/env bash\nMODEL=(\n    --a "x y"\n    --b \'z\'  # ["w"] it\'s no word\n    # --c 3\n)\n'
        'NONE=()\nMORE=(--d "4") \nMORE+=(--e 5)\nSIZES=(4 5)\nALL="${SIZES[@]}"\n'
        'accelerate launch train_it.py \\\n    "${MODEL[@]}" \\\n    "${NONE[@]}" \\\n    ${MORE[*]} --all "$ALL"\n'
    )
    assert options(found.arguments) == {"a": "x y", "b": "z", "d": "4", "e": "5", "all": "4 5"}
    assert command('A=("1" "2")\nB=(--x ${A[@]})\npython train_it.py "${B[@]}"').arguments == ("--x", "1", "2")


def test_a_variable_of_several_words_is_several_words_unless_it_is_quoted():
    text = (
        "ARGS='--a 1   --b 2'\nNAME='a b'\nSAME=$NAME\npython train_it.py $ARGS --c \"$NAME\" --d \"$SAME\" --e ${F:-g}"
    )
    assert options(command(text).arguments) == {"a": "1", "b": "2", "c": "a b", "d": "a b", "e": "g"}


SWEEP = """
RATES=("1e-4"{more})
FILE="one.yaml"
for rate in "${{RATES[@]}}"; do
  for steps in 3000; do
    out="run__${{steps}}__${{rate}}/"
    cmd="accelerate launch --config_file $FILE some/train_it.py \\
      --rate $rate \\
      --prompt \\"it's a dog:::a cat\\" \\
      --report wandb
      --steps $steps --out $out"
    echo "Running command: $cmd"
    eval $cmd
    echo -ne "----\\n"
  done
done
"""


def test_a_command_that_is_built_and_evaluated():
    found = command(SWEEP.format(more=""))
    assert found.launched_with("config_file") == "one.yaml"
    assert options(found.arguments) == {
        "rate": "1e-4",
        "prompt": "it's a dog:::a cat",
        "report": "wandb",
        "steps": "3000",
        "out": "run__3000__1e-4/",
    }


def test_a_sweep_is_several_runs():
    with pytest.raises(ConfigError, match=r"the text runs the command for each rate of 1e-4, 1e-3; leave one of them"):
        command(SWEEP.format(more=' "1e-3"'))


# --- several commands -------------------------------------------------------------------------------------------------


def test_all_commands_of_a_text_in_order():
    scripts = ("prepare.bash", "train_it.py", "embed.py")
    found = read_commands(
        "bash tools/prepare.bash -v in/ -o out/\npython embed.py out/ && DEEP=1 python train_it.py --a $HERE\n"
        "HERE=1\nexport HERE=2\npython train_it.py --a $HERE".replace("--a $HERE\n", "--a 0\n", 1),
        scripts,
    )
    assert [(command.script, command.arguments) for command in found] == [
        ("prepare.bash", ("-v", "in/", "-o", "out/")),
        ("embed.py", ("out/",)),
        ("train_it.py", ("--a", "0")),
        ("train_it.py", ("--a", "2")),
    ]
    assert [command.environment.get("DEEP") for command in found] == [None, None, "1", None]
    assert read_commands("nothing of theirs", scripts) == []
    with pytest.raises(ConfigError, match="uses \\$GONE"):
        read_commands("bash prepare.bash -v in\npython train_it.py --a $GONE", scripts)


@pytest.mark.parametrize(
    "text",
    [
        "The script prepare.bash takes four options.",
        "python embed.py is what comes next in the guide",
        "Run prepare.bash - it is quick.",
    ],
)
def test_a_script_that_is_spoken_of_is_no_command(text):
    assert read_commands(text, ("prepare.bash", "embed.py")) == []
