"""Peak memory of making an informed plan, in gradients of the PLM: `python benchmarks/plan_memory.py`.

A random Llama of 151 M parameters, 8 calibration rows of 64 tokens, one process for each placement and budget. The
memory of the loaded PLM is subtracted. See README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from memory import measured

ROWS, LENGTH, VOCAB = 8, 64, 32_000
BUDGETS = (10_000, 1_000_000, 15_000_000)


def save_plm(folder: Path) -> None:
    """Save a random Llama and a tokenizer of single characters as a Hugging Face folder with a snapshot's record."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from apet.core.records import write_json_record

    torch.manual_seed(1)
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 15, "num_attention_heads": 12}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **shape)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "</s>": 2}, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    write_json_record(folder / "snapshot.json", {"dtype": "float32"})


def gradients(folder: Path, placement: str, budget: int) -> float:
    """Return the peak of making one plan, in gradients."""
    import torch

    from apet.evaluation import ClassificationObjective, EncodedSplit, LabelTrie
    from apet.models.loading import load_plm
    from apet.training.informed_plans import Calibration, informed_plan

    plm = load_plm(folder, "plm")
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    names, lengths = [str(row) for row in range(ROWS)], torch.full((ROWS,), LENGTH)
    data = EncodedSplit(names, ids, lengths, torch.zeros(ROWS, dtype=torch.long))
    objective = ClassificationObjective(LabelTrie.from_tokens([[5], [6]]))
    calibration = Calibration(data, objective, "label_words", ROWS)

    def make() -> float:
        informed_plan(plm, placement, budget, 1, calibration)
        return 0.0

    run = measured(plm.model, make)
    return (run.peak - run.loaded) * 2**20 / (4 * plm.inventory.num_params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    one = parser.parse_args().one
    if one:
        print(json.dumps(gradients(Path(one[0]), one[1], int(one[2]))))
        return
    with TemporaryDirectory() as folder:
        save_plm(Path(folder))
        print("| placement | budget | peak above the PLM (gradients) |\n|---|---:|---:|")
        for placement in ("magnitude", "gradient", "fisher"):
            for budget in BUDGETS:
                command = [sys.executable, __file__, "--one", folder, placement, str(budget)]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                print(f"| {placement} | {budget:,} | {float(printed.splitlines()[-1]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
