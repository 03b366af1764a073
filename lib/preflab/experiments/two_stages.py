"""Two stages of DPO as stages of work: what both are trained on, and how their policies are measured."""

from dataclasses import dataclass
from typing import Literal

from preflab.data.worlds import World
from preflab.errors import BadInput
from preflab.experiments.experiment import Experiment
from preflab.methods.dpo import DPO
from preflab.models import Lora
from preflab.stages.data import Pairs, PairSource, world_of
from preflab.stages.evaluation import Evaluation
from preflab.stages.training import TrainingFromPairs
from preflab.training.from_pairs import PairTraining

Path = tuple[str, ...]  # objectives trained so far: () is the base, ("helpful",) Stage 1


@dataclass(frozen=True)
class Setting:
    """Two objectives, of one source or of two. They may be the same one: then Stage 2 has new pairs of it."""

    name: str
    sources: tuple[str, str]
    objectives: tuple[str, str]

    @classmethod
    def of(cls, name: str, row: list[str]) -> "Setting":
        """From [source, A, B], or [source, A, source, B]."""
        source_a, a, *between, b = row
        return cls(name, (source_a, *(between or [source_a])), (a, b))

    def source_of(self, objective: str) -> str:
        return self.sources[self.objectives.index(objective)]

    @property
    def world(self) -> World | None:
        """The world that both objectives are of."""
        return world_of(self.sources[0]) if self.sources[0] == self.sources[1] else None

    @property
    def orders(self) -> list[tuple[str, str]]:
        """Both orders; one if the objectives are the same."""
        return list(dict.fromkeys([self.objectives, self.objectives[::-1]]))

    @property
    def repeats(self) -> bool:
        return self.objectives[0] == self.objectives[1]

    @property
    def relation(self) -> dict[str, float]:
        """Correlation and disagreement of the two objectives; empty if they are not known."""
        if self.repeats:
            return {"correlation": 1.0, "disagreement": 0.0}
        return self.world.compatibility() if self.world else {}

    def described(self) -> dict[str, str | float]:
        """What is known of a world's two objectives beforehand: their relation, and the strength of their labels."""
        row: dict[str, str | float] = dict(self.relation)
        for letter, name in zip("AB", self.objectives, strict=True):
            row |= {letter: name, f"strength {letter}": self.world.objective(name).strength}
        return row


class TwoStages(Experiment):
    """What notebooks on sequences of stages share."""

    dpo: DPO = DPO(beta=0.3)  # paper S
    pair_training: PairTraining = PairTraining(learning_rate=2e-3, warmup_share=0.1, checkpoint_every=200)
    lora: Lora = Lora(rank=8, alpha=16)

    def all_settings(self) -> list[Setting]:
        """Every two objectives that are trained one after the other."""
        raise NotImplementedError

    @property
    def stage2_against(self) -> Literal["base", "start"]:
        """The reference of Stage 2: the base, or what Stage 2 starts from."""
        return "base"

    @property
    def answered(self) -> int:
        """So many held-out prompts of each objective are answered after every stage."""
        return 1

    def sources(self) -> list[tuple[str, str]]:
        return [both for s in self.all_settings() for both in zip(s.sources, s.objectives, strict=True)]

    def source_of(self, setting: Setting, objective: str) -> PairSource:
        """A setting with one objective draws twice as many pairs, so that Stage 2 finds new ones."""
        return self.pairs_of(setting.source_of(objective), objective, (1 + setting.repeats) * self.train_pairs)

    def trained_on(self, setting: Setting, path: Path, seed: int) -> Pairs:
        """The pairs that the last stage of a path learns from."""
        of = self.source_of(setting, path[-1])
        if not setting.repeats:
            return of.train_pairs(seed)
        start = (len(path) - 1) * self.train_pairs
        if (found := len(of.load(seed).train)) < 2 * self.train_pairs:
            raise BadInput(
                f"settings.{setting.name}: {found} training pairs, expected {2 * self.train_pairs} for both stages"
            )
        return Pairs(of, "train", seed, start, start + self.train_pairs)

    def training(self, setting: Setting, path: Path, seed: int) -> TrainingFromPairs | None:
        """Stage 1 trains a fresh adapter on the base, Stage 2 goes on with Stage 1's; None for the base itself."""
        if not path:
            return None
        return TrainingFromPairs(
            base=self.base_model,
            pairs=self.trained_on(setting, path, seed),
            seed=seed,
            lora=self.lora,
            method=self.dpo,
            loop=self.pair_training,
            order=10 * seed + len(path),  # another order of batches in Stage 2
            start=self.training(setting, path[:-1], seed),
            reference=self.stage2_against if len(path) > 1 else "base",
        )

    def evaluation(self, setting: Setting, path: Path, seed: int) -> Evaluation:
        """Held-out pairs and prompts of both objectives, after the last stage of a path."""
        held_out = tuple(self.source_of(setting, o).test_pairs for o in dict.fromkeys(setting.objectives))
        training = self.training(setting, path, seed)
        return Evaluation(self.base_model, training, held_out, self.answered, self.max_new_tokens)
