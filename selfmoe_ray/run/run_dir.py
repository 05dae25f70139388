"""Every path of a run, and the files that stages hand each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Completion, Example, Phase, Reject, Seed, from_table, to_table
from selfmoe_ray.run.storage import Storage


class RunDir:
    """The files of one run below `<root>/<run_name>`; the layout's only owner."""

    def __init__(self, root: str, run_name: str):
        self.storage = Storage(f"{root.rstrip('/')}/{run_name}")
        self.run_name = run_name

    # Names, relative to the run.
    CONFIG = "run.yaml"
    PROVENANCE = "provenance.json"
    EVENTS = "events.jsonl"
    ROUTER = "router"
    MIXSE = "mixse"
    MERGED = "merged"
    MEASURE = "measure"
    REPORT = "report"
    # In a folder: what unfinished work in it is made with.
    BEGUN = "begun.json"

    @staticmethod
    def data(domain: str) -> str:
        """The folder of a domain's rows."""
        return f"data/{domain}"

    def expert(self, domain: str) -> str:
        """The folder of an expert: a stock PEFT adapter, its metrics and its manifest."""
        return f"experts/{domain}"

    def checkpoints(self, trainer: str) -> str:
        """The folder in which a trainer keeps its resumable state."""
        return f"checkpoints/{trainer}"

    @staticmethod
    def evaluation(system: str, benchmark: str) -> str:
        """The folder of one system's scores and answers on one benchmark."""
        return f"eval/{system}/{benchmark}"

    @staticmethod
    def variant(name: str) -> str:
        """The folder of a mixture that was trained otherwise on the run's data."""
        return f"variants/{name}"

    def folders(self, stage: str, domains: Sequence[str]) -> list[str]:
        """The folders that a stage makes: one a domain, else one of the stage's name."""
        of_domain = {"generate": self.data, "experts": self.expert}
        return list(map(of_domain[stage], domains)) if stage in of_domain else [stage]

    def redo(self, stage: str) -> str:
        """What `--redo` is told to make a stage's folders anew."""
        return stage

    # The run as a whole.
    def write_start(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Say with which settings, versions and machine the run was last taken up."""
        import yaml

        self.storage.write_bytes(self.CONFIG, yaml.safe_dump(config, sort_keys=False).encode())
        self.storage.write_json(self.PROVENANCE, provenance)

    def read_config(self) -> dict[str, Any] | None:
        """The settings that `write_start` wrote last, None for a run that was never taken up."""
        import yaml

        return yaml.safe_load(self.storage.read_bytes(self.CONFIG)) if self.storage.exists(self.CONFIG) else None

    # A domain's rows.
    def part_name(self, domain: str, phase: Phase, part: str) -> str:
        """The Parquet file of one part of raw completions."""
        return f"{self.data(domain)}/{phase}/part-{part}.parquet"

    def read_parts(self, domain: str, phase: Phase) -> dict[str, list[Completion]]:
        """Finished parts of raw completions by part id, in order."""
        files = self.storage.list_files(f"{self.data(domain)}/{phase}")
        return {
            file.rsplit("/part-", 1)[1].removesuffix(".parquet"): from_table(self.storage.read_table(file), Completion)
            for file in files
            if file.endswith(".parquet")
        }

    def write_part(self, domain: str, phase: Phase, part: str, rows: list[Completion]) -> None:
        """Keep one finished part of raw completions."""
        self.storage.write_table(self.part_name(domain, phase, part), to_table(rows, Completion))

    def write_examples(self, domain: str, examples: list[Example], rejects: list[Reject]) -> None:
        """The domain's training rows and every reject with its reason."""
        from dataclasses import asdict

        self.storage.write_jsonl(f"{self.data(domain)}/rejected.jsonl", [asdict(row) for row in rejects])
        self.storage.write_table(f"{self.data(domain)}/examples.parquet", to_table(examples, Example))

    def read_examples(self, domain: str) -> list[Example]:
        """The rows that `write_examples` wrote."""
        return from_table(self.storage.read_table(f"{self.data(domain)}/examples.parquet"), Example)

    def read_rejects(self, domain: str) -> list[Reject]:
        """The rejects that `write_examples` wrote."""
        rows = self.storage.read_jsonl(f"{self.data(domain)}/rejected.jsonl")
        return [Reject(**row) for row in rows]

    def write_seeds(self, domain: str, used: list[Seed], held_out: list[Seed]) -> None:
        """The domain's seeds as this run splits them: shown to the method, or kept for measuring."""
        rows = [{**vars(seed), "held_out": out} for out, group in ((False, used), (True, held_out)) for seed in group]
        self.storage.write_jsonl(f"{self.data(domain)}/seeds.jsonl", rows)

    def read_seeds(self, domain: str, held_out: bool) -> list[Seed]:
        """One side of the split that `write_seeds` wrote."""
        rows = self.storage.read_jsonl(f"{self.data(domain)}/seeds.jsonl")
        return [Seed(row["instruction"], row["input"], row["output"]) for row in rows if row["held_out"] == held_out]

    def write_rows(self, domain: str, rows: dict[str, Any]) -> None:
        """Who sees which row, as `selfmoe_ray.domains.rows` decides it."""
        self.storage.write_json(f"{self.data(domain)}/rows.json", rows)

    def read_rows(self, domain: str) -> dict[str, Any] | None:
        """What `write_rows` wrote, or None where it is not decided yet."""
        name = f"{self.data(domain)}/rows.json"
        return self.storage.read_json(name) if self.storage.exists(name) else None

    # Manifests, which `selfmoe_ray.run.stages` writes.
    def read_manifest(self, folder: str) -> dict[str, Any] | None:
        """The manifest of a finished stage's folder, or None where it is not finished."""
        name = f"{folder}/manifest.json"
        return self.storage.read_json(name) if self.storage.exists(name) else None

    def write_manifest(
        self,
        folder: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        counts: dict[str, Any],
        seconds: float,
        devices: float = 0,
    ) -> None:
        """Mark a folder as finished. inputs: of what was read, by folder (`manifest_hash`).

        The others are those of a `Product` and of a `Made`.
        """
        self.storage.write_json(
            f"{folder}/manifest.json",
            {
                "settings": settings,
                "inputs": inputs,
                "counts": counts,
                "seconds": round(seconds, 3),
                "device_seconds": round(seconds * devices, 3),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )

    def manifest_hash(self, folder: str) -> str:
        """What a manifest's settings and inputs stand for, to be recorded by later stages."""
        manifest = self.read_manifest(folder)
        if manifest is None:
            raise UserError(f"{self.storage.path(folder)} is not finished: it has no manifest.json")
        text = json.dumps([manifest["settings"], manifest["inputs"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class VariantDir(RunDir):
    """A mixture that was trained otherwise on a run's data: its own folders are below the run's `variants/<variant>/`.

    shares_experts: its experts are the run's; else they are its own, as router and `mixse/` always are.
    """

    def __init__(self, run_dir: RunDir, variant: str, shares_experts: bool):
        self.storage = run_dir.storage
        self.run_name = run_dir.run_name
        self.folder = run_dir.variant(variant)
        self.shares_experts = shares_experts
        self.ROUTER = f"{self.folder}/{RunDir.ROUTER}"
        self.MIXSE = f"{self.folder}/{RunDir.MIXSE}"

    def expert(self, domain: str) -> str:
        """The folder of an expert."""
        own = super().expert(domain)
        return own if self.shares_experts else f"{self.folder}/{own}"

    def checkpoints(self, trainer: str) -> str:
        """The folder of a trainer's state, which goes away with the variant."""
        return f"{self.folder}/{super().checkpoints(trainer)}"

    def redo(self, stage: str) -> str:
        """What is redone is the whole variant."""
        return self.folder
