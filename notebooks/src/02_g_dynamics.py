# %% [markdown]
# # 02 · What do DPO and PPO do while they train?
#
# Take the responses that a model will give when its training has ended, and ask at every moment before: does the next
# update make them more likely? The answer is one number, the **gradient alignment** of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778) (Eq. 3):
#
# $$G(L;\theta) = \hat{\mathbb E}_{D'}\big[-\nabla_\theta \log\pi(y'\mid x';\theta)\big]^\top \nabla_\theta L(D;\theta),$$
#
# where $D'$ holds the run's own final responses. A step of gradient descent of size $\eta$ on $L$ lowers their NLL by
# $\eta G$: $G>0$ is a step towards where training will end, as in supervised learning with fixed targets; $G$ around zero
# is exploration. Because $G$ is linear in $L$, every part of a loss has its own.
#
# **Claims tested** (the paper's sections 3.1 and 3.2; its numbers are not available to us, so shapes only):
#
# | | claim | figure of the paper |
# |---|---|---|
# | D1 | $G$ of DPO stays positive | 1a |
# | D2 | $G$ of PPO stays near zero, fluctuates or turns slightly negative | 2a |
# | D3 | in DPO, positive and negative learning offset each other; positive dominates early, negative late | 1b |
# | D4 | DPO's weight $w$ shrinks as the margin grows; its tertiles act alike | 1c |
# | D5 | in PPO, $G$ of positive learning is steadily above zero, of negative learning steadily below | 2b |
# | D6 | in PPO, the tertiles of $\lvert A\rvert$ play distinct parts | 2c |
#
# What is the paper's: the formula of $G$, the components, tertiles of equal size, responses of the final model as $D'$,
# SFT before both methods. What is ours, because no source says it: the world and the model's size, every learning rate,
# where the KL penalty sits (in the reward, so it is part of $A$), tertiles within the probe of one measurement, greedy
# decoding of $D'$, the sum over a response's tokens in its NLL, the probes, and the rule of each verdict. Not in the
# paper: the noise of $G$, $G$ of single tokens and layers, and $G$ under Adam's real step.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "02_g_dynamics"
source: str = "world:conflict"  # paper D: UltraFeedback
objective: str = "helpful"
final_source: str | None = None  # of the held-out prompts that D' answers; None: those of `source`
final_objective: str | None = None
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1600  # DPO's pairs; PPO and the reward model use the same prompts and pairs
test_pairs: int = 256
max_new_tokens: int = 32
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which the table below shows.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 400}}
lora: dict = {}  # {"rank": 8} trains an adapter instead of all parameters
dpo: dict = {}  # beta
ppo: dict = {}  # clip, KL coefficient, GAE, values, ...
pair_training: dict = {}  # DPO's loop: learning rate, batch size, epochs, ...
sample_training: dict = {}  # PPO's loop: iterations, batch sizes, learning rate, ...
reward: dict = {}  # {"kind": "oracle"}; the training of a reward model
measurement: dict = {}  # how often, and on what, G is measured
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.dynamics import GDynamics

P = GDynamics.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd
import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from preflab import alignment, rewards, weightings
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.dynamics import Curves, dynamics_claims
from preflab.data import worlds
from preflab.figures import dynamics as plots
from preflab.generation import decode, sample
from preflab.likelihood import collate, collate_responses, token_log_probs
from preflab.measured import COMPONENTS, SIGNS
from preflab.methods.method import Scored
from preflab.models import unwrap
from preflab.running.parallel import Job, parallel
from preflab.running.run import start
from preflab.statistics import mean_interval

run = start(P)
jobs = P.planned()
run.overview()

# %% [markdown]
# ## The SFT model and the reward
#
# Both methods start from one SFT model, which is also their reference. DPO learns from pairs; PPO is rewarded by a reward
# model, trained with TRL on the same pairs. Both models train once, in about 40 seconds; later runs load them. In a world it can be checked twice over: against the labels, and against the
# probabilities from which the labels were drawn. `best_accuracy` is that of the true utilities on the same noisy labels.

# %%
asked = P.prompts().messages()  # so many must be there, before anything trains
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()
print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
teacher = P.reward_stage()
score = teacher.load()
reward_margins = teacher.margins(P.pairs.test_pairs)
world, spec = P.pairs.world, P.utility
held_out = P.pairs.test_pairs.rows()
truth = rewards.label_probabilities(world, P.objective, held_out) if world else None
reward_quality = rewards.quality(reward_margins, truth)
pd.Series(reward_quality, name="reward on held-out pairs").to_frame().round(3)

# %%
curve = rewards.calibration_curve(reward_margins, truth) if world else None
run.figure("calibration", plots.calibration({P.reward.kind: curve})) if curve else "no known probabilities here"

# %% [markdown]
# ## One backward pass and one forward-mode pass
#
# Every loss here is a rule for a weight $c$ on each response token, $\nabla L = -\sum c_{i,t}\nabla\log\pi_{i,t}$. So with
#
# $$v = \nabla\,\mathrm{NLL}(D'), \qquad s_{i,t} = \nabla\log\pi(y_{i,t}\mid x_i, y_{i,<t})\cdot v, \qquad
# G(\text{component}) = -\sum_{(i,t)\in\text{component}} c_{i,t}\,s_{i,t},$$
#
# one backward pass gives $v$, and one forward-mode pass gives $s$ of **every token**. Every component is then a masked sum.
# Take four pairs, and two other responses that stand for $D'$:

# %%
rows = P.pairs.train_pairs(P.seeds[0]).encoded(P.base_model)[:6]
policy = P.base_model.fresh_policy(P.lora, seed=0)
batch = collate(rows[:4], tokenizer.pad_token_id, model.device)  # 4 chosen rows above 4 rejected ones
final = collate_responses([(r["prompt_ids"], r["chosen_ids"]) for r in rows[4:]], tokenizer.pad_token_id, model.device)
ratios = torch.linspace(-2, 2, 8, device=model.device)  # log pi/pi_ref of each response, as if training had moved it
c, _, _ = P.dpo.weigh(ratios, batch["completion_mask"][:, 1:])  # (8, seq - 1)

parameters = alignment.parameters_of(policy)  # by name, those that are trained
v = alignment.nll_gradient(policy, [final], parameters, P.measurement.nll)  # one backward pass; shaped as parameters

# %% [markdown]
# $s_{i,t}$ is the derivative of $\log\pi(y_{i,t})$ along the direction $v$. A *dual number* carries a value and its
# derivative along one direction. Give every parameter the tangent $v$, run the model once, and the log-probs come out with
# $s$ as their tangent:

# %%
with torch.no_grad(), forward_ad.dual_level():
    moving = {name: forward_ad.make_dual(p.detach(), v[name].to(p.dtype)) for name, p in parameters.items()}

    def moved(*args, **kwargs):
        return functional_call(policy, moving, args, kwargs)  # the model, with these parameters in their place

    s = forward_ad.unpack_dual(token_log_probs(moved, batch)).tangent  # (8, seq - 1)

# %% [markdown]
# The library's `token_alignment` does the same, a little faster. Plain autograd must agree on the whole loss, and the parts
# must add up:

# %% tags=["nbval-check-output"]
g = alignment.alignment(c, s, weightings.sign_components(c), n=4)
gradient = alignment.loss_gradient(policy, [(batch, c)], parameters, n=4)  # plain autograd, the whole loss alone
print("same as the library's:", torch.allclose(s, alignment.token_alignment(policy, batch, v), rtol=1e-3, atol=1e-4))
print(f"s {tuple(s.shape)}; agrees with autograd: {np.isclose(alignment.dot(v, gradient), g['whole'], rtol=1e-3)}")
print(f"positive + negative = whole: {np.isclose(g['positive'] + g['negative'], g['whole'])}")

# %% [markdown]
# ## PPO as a token weighting
#
# PPO samples, scores, and turns the scores into an advantage $A$ for every token: the reward is the score at the last
# token less $\kappa\log\pi/\pi_\mathrm{ref}$ at each; generalised advantage estimation spreads it back; advantages are
# whitened. Then $c = rA$ where the clip leaves the gradient, $r=\pi/\pi_\mathrm{old}$. On its own samples $r = 1$, so $c = A$:
# tokens that did better than expected are learnt positively, the others negatively.

# %%
prompts = held_out["prompt"][:4]
samples = sample(policy, tokenizer, prompts, max_new_tokens=P.max_new_tokens, temperature=1.0, seed=0)
drawn = collate_responses(samples, tokenizer.pad_token_id, model.device)
mask = drawn["completion_mask"][:, 1:]
with torch.no_grad():
    log_probs = token_log_probs(policy, drawn)  # (4, seq - 1); the policy is the reference still, so KL is 0
scores = score(prompts, samples).to(log_probs)
finished = torch.tensor([ids[-1] == tokenizer.eos_token_id for _, ids in samples], device=model.device)
values = torch.zeros_like(log_probs)  # a value head that has learnt nothing yet
A, _ = P.ppo.advantages(Scored(scores, finished, log_probs - log_probs, values, mask))
c_ppo, _, clipped = P.ppo.clipped_weighting(log_probs, log_probs, A, mask)
print("ratio 1, nothing clipped:", bool((c_ppo == A).all()), int(clipped.sum()))
if P.show_texts:
    for text, r, weights in zip(decode(tokenizer, samples), scores, c_ppo, strict=True):
        print(f"reward {r:+.2f}   c from {weights[weights != 0][0]:+.2f} to {weights[weights != 0][-1]:+.2f}   {text}")
policy = unwrap(policy)
# %% [markdown]
# ## Run
#
# For every seed one DPO and one PPO run, with snapshots of the weights. When a run has ended, its final policy answers
# held-out prompts: that is $D'$. Then $G$ is measured at every snapshot: on training pairs for DPO, on fresh samples of the
# snapshot's policy for PPO. The probe and $D'$ are cut in halves, and the four corners of a measurement tell its noise.

# %%
work = [Job(str(job), (P.alignment(job.training), P.answers_stage(job.training))) for job in jobs]
parallel({"trained and measured": work}, P.hardware.workers)
measured = {(job.row.method, job.seed): P.alignment(job.training).load() for job in jobs}
histories = {(job.row.method, job.seed): job.training.load() for job in jobs}
progress = {m: measured[m, P.seeds[0]].progress for m in ("dpo", "ppo")}


def stacked(method, values_of):
    return np.array([values_of(measured[method, seed]) for seed in P.seeds])


# %% [markdown]
# ### Did they learn?
#
# Sampled responses to held-out prompts, before and after; the oracle's utility, paired by prompt, with an
# interval over prompts. Collapse would show: few different responses, a high KL, faults. `D'` is decoded as the parameter
# says (greedy here): how many of its responses the oracle can read, and how many came to an end.

# %%
before = P.answers_stage(None).load()


def well_formed(texts):
    read = [worlds.read(worlds.Prompt.parse(q[-1]["content"]), text) for q, text in zip(asked, texts, strict=True)]
    return np.mean([a.faults == 0 for a in read])


def spoken(a):
    found = {"distinct": len(set(a.sampled_texts)) / len(a.sampled_texts)}
    if spec:
        found |= {
            "utility": np.mean(rewards.utilities(spec, asked, a.sampled_texts)),
            "well-formed": well_formed(a.sampled_texts),
            "D' well-formed": well_formed(a.final_texts),
        }
    return found | {"D' ended": np.mean([ids[-1:] == [tokenizer.eos_token_id] for _, ids in a.final])}


answers = {str(job): P.answers_stage(job.training).load() for job in jobs}
outcomes = {}
if spec:
    utility_before = rewards.utilities(spec, asked, before.sampled_texts)
    for name_, after in answers.items():
        gain = rewards.utilities(spec, asked, after.sampled_texts) - utility_before
        outcomes[name_] = mean_interval(gain[None])
table = pd.DataFrame({"SFT": spoken(before)} | {k: spoken(a) for k, a in answers.items()}).T
table["gain in utility"] = pd.Series(outcomes, dtype=object)
table["KL to SFT, nats"] = pd.Series({k: a.kl for k, a in answers.items()})
table.sort_index(ascending=False).round(2)


# %%
def logged(method, key):
    curves = np.array([[entry[key] for entry in histories[method, seed]] for seed in P.seeds])
    return np.linspace(0, 1, curves.shape[1]), curves


panels = {"DPO: loss": logged("dpo", "loss"), "DPO: accuracy": logged("dpo", "accuracy")}
panels |= {
    f"PPO: {title}": logged("ppo", key)
    for title, key in {
        "reward": "score",
        "oracle's utility": "oracle",
        "KL, nats a response": "kl",
        "entropy, nats a token": "entropy",
        "share of clipped tokens": "clip_share",
        "values' explained variance": "explained_variance",
    }.items()
    if spec or key != "oracle"
}
run.figure("training", plots.training_curves(panels))

# %% [markdown]
# ## G along training
#
# The paper's six panels. Thin lines are seeds, thick ones their mean; the grey band is twice the standard error of one
# measurement, from split halves: a curve within it cannot be told from zero at that moment.

# %%
g = {m: {k: stacked(m, lambda x, i=i: x.g[:, i]) for i, k in enumerate(COMPONENTS)} for m in progress}
noise = {m: {k: stacked(m, lambda x, i=i: x.noise()[:, i]) for i, k in enumerate(COMPONENTS)} for m in progress}
run.figure("six_panels", plots.six_panels(progress, g, noise))

# %% [markdown]
# **Read it.** The two rows have scales of their own: PPO's advantages are whitened, DPO's weights are at most $\beta$. Compare
# shapes. Two things are known beforehand: on the left, the black curve is the sum of the two in the middle, and also of
# the three on the right; and a component with larger weights has a larger $G$ for that reason alone.

# %% [markdown]
# ### Inner epochs
#
# PPO passes over an iteration's samples more than once. The six panels show the first update, on fresh samples. When the
# second epoch begins, the policy has moved: the ratio is no longer 1, and the clip takes the gradient of some tokens. Here is
# $G$ on the *same* samples at both moments, with the gradient of $D'$ taken anew.

# %%
inner = stacked("ppo", lambda x: x.inner[:-1])  # (seeds, steps, epochs - 1, signs)
fresh = {part: g["ppo"][part][:, :-1] for part in SIGNS}
stale = {part: inner[:, :, -1, i] for i, part in enumerate(SIGNS)} if inner.shape[2] else {}
run.figure("inner_epochs", plots.inner_epochs(progress["ppo"][:-1], fresh, stale)) if stale else "one epoch, none later"

# %% [markdown]
# **Read it.** Where the two lines lie apart, staleness has changed what an update does to the final responses. Compare the
# difference with the grey band of the six panels: what is smaller may be noise.
#
# ### The weights themselves
#
# Reviewers of the paper asked for these: the distributions of $w$ and $|A|$, with the borders of the tertiles.

# %%
moments = {"at the start": 0, "half-way": len(progress["dpo"]) // 2, "at the end": -1}
distributions = {
    m: {moment: np.concatenate([measured[m, s].weights[i] for s in P.seeds]) for moment, i in moments.items()}
    for m in progress
}
run.figure("weights", plots.weight_distributions(distributions))

# %% [markdown]
# ### Token by token
#
# What only the forward-mode pass can show: the pull $-c\,s$ of every token half-way through training. Blue tokens pull the
# model towards its final responses, red ones away. In a pair, the first row is chosen, the second rejected.

# %%
labels = {"dpo": ("chosen", "rejected"), "ppo": ("sample",)}
picture = []
for m in progress:
    shown = measured[m, P.seeds[0]].tokens[len(progress[m]) // 2]
    scale = np.max(np.abs(np.concatenate([row["pull"] for row in shown])))  # each method has its own
    for i, row in enumerate(shown):
        label = f"{m.upper()} {labels[m][i % len(labels[m])]:<8}"
        picture.append({**row, "label": label, "pull": np.array(row["pull"]) / scale})
run.figure("tokens", plots.token_picture(picture)) if P.show_texts else "texts are not shown"

# %% [markdown]
# ### Layer by layer

# %%
places = list(measured["dpo", P.seeds[0]].layers[0]["whole"])
by_layer = {
    m: {
        part: np.mean(
            [[[step[part][place] for step in measured[m, s].layers] for place in places] for s in P.seeds], axis=0
        )
        for part in ("whole", "positive", "negative")
    }
    for m in progress
}
run.figure("layers", plots.layer_map(places, progress, by_layer))

# %% [markdown]
# ### Does it hold under Adam?
#
# $G$ speaks of plain gradient descent; the paper leaves Adam open. Here is the optimiser's **real** update at every
# measured step: what $v$ predicts of it, $v\cdot(\theta_{t+1}-\theta_t)$, against what it did to the NLL of $D'$. Points on
# the line: first order is enough. The table asks the other question: does Adam's step have the sign that $G$ foretells?

# %%
predicted = {m: stacked(m, lambda x: x.predicted[:-1]) for m in progress}
changed = {m: stacked(m, lambda x: x.changed[:-1]) for m in progress}
run.figure("adam", plots.first_order(predicted, changed))

# %%
adam = {
    m.upper(): {
        "correlation of predicted and real": np.corrcoef(predicted[m].ravel(), changed[m].ravel())[0, 1],
        "sign of Adam's step as G foretells": np.mean(np.sign(-predicted[m]) == np.sign(g[m]["whole"][:, :-1])),
        "cosine of Adam's step and descent": np.mean(stacked(m, lambda x: x.step_cosine[:-1])),
        "cosine of v and the gradient": np.mean(stacked(m, lambda x: x.cosine)),
        "ceiling: halves of D'": np.mean(stacked(m, lambda x: x.ceilings[:, 0])),
        "ceiling: halves of the probe": np.mean(stacked(m, lambda x: x.ceilings[:, 1])),
    }
    for m in progress
}
pd.DataFrame(adam).round(2)

# %% [markdown]
# ## Claims
#
# Each rule was written before its run; `claims/dynamics.py` holds them. Intervals are Student's, over seeds: with two
# they are wide, and the verdicts that count are those of the `full` profile.

# %%
curves = {m: Curves(**g[m], weight=stacked(m, lambda x: np.array([w.mean() for w in x.weights]))) for m in progress}
verdicts = withheld(dynamics_claims(curves["dpo"], curves["ppo"]), P.measurement.finals, "prompts of D'")
table_of(verdicts)

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": outcomes,
        "reward": reward_quality,
        "responses": table.drop(columns="gain in utility").to_dict("index"),
        "adam": adam,
        "dominance": {m: {"early": curves[m].dominance(0), "late": curves[m].dominance(2)} for m in progress},
        "opposite_signs": {m: float(np.mean(g[m]["positive"] * g[m]["negative"] < 0)) for m in progress},
        "inner_epochs": {part: [np.mean(fresh[part]), np.mean(some)] for part, some in stale.items()},
        "above_noise": {m: float(np.mean(np.abs(g[m]["whole"]) > 2 * noise[m]["whole"])) for m in progress},
    },
    series={
        "progress": progress,
        "g": g,
        "noise": noise,
        "cosine": {m: stacked(m, lambda x: x.cosine) for m in progress},
        "nll": {m: stacked(m, lambda x: x.nll) for m in progress},
        "predicted": predicted,
        "changed": changed,
        "layers": by_layer,
        "inner_epochs": stale,
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Change the parameters cell, then choose *Run → Run All Cells*. What is trained already does not train again.
#
# 1. Set `measurement` to `{"final_temperature": 1.0}`. At the end of training $\mathbb E_{y'\sim\pi}[\nabla\log\pi(y')] = 0$, so $v$ vanishes but for
#    noise, and with it $G$ of *any* loss. Which claims change their verdict? Is "near zero" a property of PPO, then?
# 2. Set `measurement` to `{"nll": "mean"}`, as the group's earlier code does. Which curves change their sign?
# 3. Set `reward` to `{"kind": "oracle"}`, then to `{"label_flips": 0.3}`. What does a worse teacher do to positive and negative learning?
# 4. $G$ of a tertile grows with its weights. Divide by `total_weight` of `measured.Measured`: what is left of D6?
# 5. Replace `weightings.sign_components` by your own masks: the first token, the tool's name, the refusal. Whose $G$ is it?
