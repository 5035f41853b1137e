"""When the next stage begins."""

from sparse_prefix_jax.training.curriculum import STAGES, Progress


def test_stages_become_longer_and_fuller() -> None:
  assert STAGES[0].tokens == 128 and STAGES[-1].tokens == 2048
  assert STAGES[-1].facts == 64 and STAGES[-1].questions >= 24
  tokens = [stage.tokens for stage in STAGES]
  facts = [stage.facts for stage in STAGES]
  assert tokens == sorted(set(tokens)) and facts == sorted(set(facts))


def test_a_stage_that_is_learned_gives_way_to_the_next() -> None:
  progress, stages = Progress(), []
  for _ in range(400):
    progress = progress.after(1.0, steps=4000)
    stages.append(progress.stage)
  assert stages == sorted(stages) and set(stages) == set(range(len(STAGES)))
  assert progress.step == 400
  # Each needs some steps, however well it goes.
  assert min(stages.count(stage) for stage in range(len(STAGES))) > 30


def test_a_stage_that_is_not_learned_stays_for_its_share() -> None:
  progress, begun = Progress(), []
  for _ in range(1000):
    before, progress = progress, progress.after(0.85, steps=1000)
    if progress.stage > before.stage:
      begun.append(progress.step)
  assert begun == [250, 300, 350, 450, 550]
  assert progress.stage_steps == 450
  assert abs(progress.accuracy - 0.85) < 1e-3
