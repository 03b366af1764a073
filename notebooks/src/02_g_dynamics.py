# %% [markdown]
# # 02 · What do DPO and PPO do while they train?
#
# Train a model, and keep the responses that it gives in the end. Then ask at every earlier moment: does the next update make
# these final responses more likely? The answer is one number, the **gradient alignment** of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778) (Eq. 3):
#
# $$G(L;\theta) = \hat{\mathbb E}_{D'}\big[-\nabla_\theta \log\pi(y'\mid x';\theta)\big]^\top \nabla_\theta L(D;\theta),$$
#
# where $D'$ holds the final responses of the same run. A step of gradient descent of size $\eta$ on $L$ lowers their NLL by
# $\eta G$. If $G>0$, the step goes towards the place where training will end, as supervised learning with fixed targets
# does. If $G$ is around zero, the step explores. $G$ is linear in $L$, so every part of a loss has a $G$ of its own.
#
# **Claims tested** (sections 3.1 and 3.2 of the paper; its numbers are not available to us, so we test shapes):
#
# | | claim | figure of the paper |
# |---|---|---|
# | D1 | $G$ of DPO stays positive | 1a |
# | D2 | $G$ of PPO stays near zero, fluctuates or turns slightly negative | 2a |
# | D3 | in DPO, positive and negative learning offset each other; positive dominates early, negative late | 1b |
# | D4 | DPO's weight $w$ shrinks as the margin grows, and its tertiles (thirds of the pairs, sorted by $w$) act alike | 1c |
# | D5 | in PPO, $G$ of positive learning is steadily above zero, of negative learning steadily below | 2b |
# | D6 | in PPO, the tertiles of $\lvert A\rvert$ play distinct parts | 2c |
#
# **What is the paper's:** the formula of $G$, the parts of the loss, tertiles of equal size, responses of the final model as
# $D'$, SFT before both methods. **What is ours, because no source says it:** the world and the size of the model, every
# learning rate, that the KL penalty is in the reward and so in $A$, tertiles within the probe of one measurement, greedy
# decoding of $D'$, the sum over the tokens of a response in its NLL, the probes, and the rule of each verdict. **Not in the
# paper:** the noise of $G$, $G$ of single tokens and layers, $G$ in later inner epochs, and $G$ under Adam's real step.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "02_g_dynamics"
source: str = "world:guide-conflict"  # paper D: UltraFeedback
objective: str = "helpful"
final_source: str | None = None  # of the held-out prompts that D' answers; None: those of `source`
final_objective: str | None = None
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 640  # DPO's pairs; PPO and the reward model use the same prompts and pairs
test_pairs: int = 200
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 88
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed
tuning_seeds: list = []  # of runs on which the gates below must be met before the seeds above are run
beyond_gates: bool = False  # run them all the same; this is recorded
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 1000}}
lora: dict = {}  # {"rank": 8} trains an adapter instead of all parameters
dpo: dict = {}  # beta
ppo: dict = {}  # clip, KL coefficient, GAE, values, ...
pair_training: dict = {}  # DPO's loop: learning rate, batch size, epochs, ...
sample_training: dict = {}  # PPO's loop: iterations, batch sizes, learning rate, ...
reward: dict = {}  # {"kind": "oracle"}; the training of a reward model
measurement: dict = {}  # how often, and on what, G is measured
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.g_dynamics import GDynamics

P = GDynamics.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import itertools
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from preflab import alignment, measured, rewards, weightings
from preflab.attention import written_out
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.dynamics import Curves, dynamics_claims
from preflab.claims.registration import registered
from preflab.experiments.g_dynamics import logged
from preflab.figures import dynamics as plots
from preflab.gates import table as as_gates
from preflab.generation import decode, sample
from preflab.judging import as_table, counted
from preflab.likelihood import collate, collate_responses, token_log_probs
from preflab.methods.method import Scored
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start

run = start(P)
run.overview()

# %% [markdown]
# ## The SFT model and the reward
#
# Both methods start from one SFT model, which is also their reference. DPO learns from pairs. PPO learns from its own
# samples, and a **reward** tells it how good they are. Here it is the *implicit reward* of another DPO run, on pairs that no
# measured run sees: $r(x,y) = \beta\log\pi(y\mid x)/\pi_\mathrm{ref}(y\mid x)$. So PPO is told no less than DPO can learn from as many
# pairs. A reward model that TRL trains (`reward: {"kind": "model"}`) orders fewer pairs of this world rightly.

# %%
print("The SFT model is trained once (about 50 s in the default run). Later runs load it.")
asked = P.prompts().messages()  # so many prompts must be there, before anything trains
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()
print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")

# %%
print("The reward is trained once (about 10 s in the default run). Later runs load it.")
teacher = P.reward_stage()
score = teacher.load()  # score(prompts, samples): (n,), mean 0 and deviation 1 on samples of the SFT model

# %% [markdown]
# In a world the reward can be checked twice: against the labels of held-out pairs, and against the probabilities that the
# labels were drawn from. `accuracy` is the share of pairs that the reward orders as their labels do. `best_accuracy` is the
# same for the true utilities, which the labels follow with noise. `order_accuracy` compares the reward with the order of
# the true utilities.

# %%
held_out = P.pairs.test_pairs.rows()
world = P.pairs.world
truth = rewards.label_probabilities(world, P.objective, held_out) if world else None
reward_margins = teacher.margins(P.pairs.test_pairs)  # (pairs,): r(y+) - r(y-)
reward_quality = rewards.quality(reward_margins, truth)
judge_quality = rewards.quality(P.judge_stage().margins(P.pairs.test_pairs)) if P.reward.judge_share else None
qualities = {"reward": reward_quality} | ({"judge": judge_quality} if judge_quality else {})
as_table(qualities, {"held-out pairs": len(held_out)})

# %%
print("\n".join(P.few()) or "enough pairs")

# %%
curve = rewards.calibration_curve(reward_margins, truth) if world else None
run.figure("calibration", plots.calibration({"reward": curve})) if curve else "no known probabilities here"

# %% [markdown]
# **Read it.** A point holds a tenth of the pairs. On the diagonal the reward is as sure as it should be. In the default run the line
# is far steeper: the reward orders pairs well, and its differences are far too small. PPO gets it scaled to a deviation of 1, so
# for PPO the order and the relative size matter, and not this scale.
#
# ## G of a loss, with one backward pass and one forward-mode pass
#
# Every loss here is a rule for a weight $c$ on each response token, $\nabla L = -\sum c_{i,t}\nabla\log\pi_{i,t}$. So $G$ is
# a sum over tokens:
#
# $$v = \nabla\,\mathrm{NLL}(D'), \qquad s_{i,t} = \nabla\log\pi(y_{i,t}\mid x_i, y_{i,<t})\cdot v, \qquad
# G(\text{part}) = -\sum_{(i,t)\in\text{part}} c_{i,t}\,s_{i,t}.$$
#
# $s$ says how fast the log-prob of a token changes when the parameters move along $v$. Try it on four pairs. Two other
# responses stand for $D'$:

# %% tags=["nbval-check-output"]
rows = P.pairs.train_pairs(P.seeds[0]).encoded(P.base_model)[:6]  # token ids of six pairs
batch = collate(rows[:4], tokenizer.pad_token_id, model.device)  # (8, seq): 4 chosen rows above 4 rejected rows
two = [(row["prompt_ids"], row["chosen_ids"]) for row in rows[4:]]
final = collate_responses(two, tokenizer.pad_token_id, model.device)  # (2, seq)
print("pairs", tuple(batch["input_ids"].shape), " D'", tuple(final["input_ids"].shape))

# %% [markdown]
# ### c: the weights of DPO
#
# DPO gives $+w$ to chosen tokens and $-w$ to rejected ones, with $w = \beta\,\sigma(-\beta\Delta)$ of each pair. Let training
# have moved the chosen responses already, so that the four pairs differ:

# %%
moved = torch.tensor([20.0, 5.0, 0.0, -20.0, 0.0, 0.0, 0.0, 0.0], device=model.device)  # (8,): log pi/pi_ref, made up
c, _, _ = P.dpo.weigh(moved, batch["completion_mask"][:, 1:])  # (8, seq - 1), 0 off the response
print("w of each pair", [f"{value:.4f}" for value in c[:4].amax(1)])

# %% [markdown]
# A pair that the model has learnt already ($\Delta = 20$) counts little, and one that it has the wrong way round
# ($\Delta = -20$) counts most.
#
# ### v: one backward pass
#
# The gradient of the mean NLL of $D'$, for every parameter that is trained:

# %%
policy = P.base_model.fresh_policy(P.lora, seed=0)
parameters = {n: p for n, p in policy.named_parameters() if p.requires_grad}
nll = -token_log_probs(policy, final).sum(1)  # (2,): -log pi(y'|x')
gradient = torch.autograd.grad(nll.mean(), list(parameters.values()))
v = dict(zip(parameters, gradient, strict=True))  # each of the shape of its parameter
print(f"NLL {nll.mean():.2f} nats, |v| = {sum(g.square().sum() for g in gradient).sqrt():.2f}")

# %% [markdown]
# ### s: one forward-mode pass
#
# Give every parameter a *tangent*: the direction in which it moves. Run the model once. Forward-mode differentiation carries
# the tangents through every layer, and each log-prob comes out with its own tangent. That tangent is $s$, for all tokens at
# once.

# %%
inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
following = batch["input_ids"][:, 1:, None]  # (8, seq - 1, 1): the tokens that are predicted
with torch.no_grad(), forward_ad.dual_level(), written_out(policy):  # forward mode needs attention in plain operations
    moving = {n: forward_ad.make_dual(p.detach(), v[n]) for n, p in parameters.items()}  # theta, with the tangent v
    logits = functional_call(policy, moving, kwargs=inputs).logits  # (8, seq, vocabulary), with tangents
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, following).squeeze(-1)  # (8, seq - 1)
    s = forward_ad.unpack_dual(log_probs).tangent  # the derivative of each log-prob along v
s = s * batch["completion_mask"][:, 1:]  # 0 off the response

# %% [markdown]
# The library's `token_alignment` does the same:

# %% tags=["nbval-check-output"]
theirs = alignment.token_alignment(policy, batch, v)
print("s", tuple(s.shape), " same as the library's:", torch.allclose(s, theirs, rtol=1e-4, atol=1e-4))

# %% [markdown]
# Autograd needs a backward pass for every single token. Here is one of them, the first token of the first response:

# %% tags=["nbval-check-output"]
first = int(batch["completion_mask"][0, 1:].argmax())  # where the response begins
of_token = torch.autograd.grad(token_log_probs(policy, batch)[0, first], list(parameters.values()))
by_autograd = sum((a * b).sum() for a, b in zip(of_token, v.values(), strict=True))
print("same as autograd's:", torch.allclose(s[0, first], by_autograd, rtol=1e-3, atol=1e-4))

# %% [markdown]
# ### G: masked sums
#
# Each part of the loss is a mask over tokens. Positive learning has $c > 0$, negative learning has $c < 0$. The sum over a
# part, divided by the number of pairs, is its $G$:

# %%
pull = -(c * s) / 4  # (8, seq - 1): what each token adds to G
g_example = {"whole": pull.sum(), "positive": pull[c > 0].sum(), "negative": pull[c < 0].sum()}
print({part: f"{value:+.3f}" for part, value in g_example.items()})

# %% [markdown]
# The parts add up to the whole. And plain autograd, which knows nothing of tokens, finds the same for the whole loss: the
# inner product of $v$ with the gradient of the loss.

# %% tags=["nbval-check-output"]
loss = weightings.surrogate(c, token_log_probs(policy, batch)) / 4  # its gradient is DPO's
whole = torch.autograd.grad(loss, list(parameters.values()))
by_autograd = sum((a * b).sum() for a, b in zip(whole, v.values(), strict=True))
print("the parts add up:", torch.allclose(g_example["positive"] + g_example["negative"], g_example["whole"], atol=1e-4))
print("same as autograd's:", torch.allclose(by_autograd, g_example["whole"], rtol=1e-3, atol=1e-4))

# %% [markdown]
# ## PPO as a token weighting
#
# PPO draws samples from the policy and scores them. Try it on four prompts:

# %%
four = held_out["prompt"][:4]
samples = sample(policy, tokenizer, four, max_new_tokens=P.max_new_tokens, temperature=1.0, seed=0)  # token ids
scores = score(four, samples)  # (4,)
for text, value in zip(decode(tokenizer, samples), scores, strict=True) if P.show_texts else ():
    print(f"{value:+.2f}  {text}")

# %% [markdown]
# A score belongs to a whole response, and $c$ needs a number for each token. The reward of a token is
# $-\kappa\log(\pi/\pi_\mathrm{ref})$, the KL penalty, and the last token has the score on top. Generalised advantage
# estimation compares what follows a token with what the values expected there:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}.$$
#
# The advantages of a batch are then shifted and scaled to mean 0 and variance 1 (whitened).

# %%
drawn = collate_responses(samples, tokenizer.pad_token_id, model.device)  # (4, seq)
mask = drawn["completion_mask"][:, 1:]  # (4, seq - 1)
with torch.no_grad():
    old = token_log_probs(policy, drawn)  # (4, seq - 1): under the policy that has drawn the samples
finished = torch.tensor([ids[-1] == tokenizer.eos_token_id for _, ids in samples], device=model.device)  # (4,)
no_kl = no_values = torch.zeros_like(old)  # the policy is the reference still; a fresh value head says 0
A, _ = P.ppo.advantages(Scored(scores.to(old), finished, no_kl, no_values, mask))  # (4, seq - 1)
for row, used in zip(A, mask.bool(), strict=True):
    print(" ".join(f"{value:+.2f}" for value in row[used]))

# %% [markdown]
# With $r = \pi/\pi_\text{old}$ for each token, PPO's weight is
#
# $$c_{i,t} = \begin{cases} 0 & A > 0 \text{ and } r > 1+\epsilon, \text{ or } A < 0 \text{ and } r < 1-\epsilon\\
# r_{i,t}\,A_{i,t} & \text{otherwise.}\end{cases}$$
#
# The first case is the clip. It takes the gradient of a token that has already moved far enough in the direction that its
# advantage wants. On fresh samples $r = 1$, nothing is clipped, and $c = A$.


# %% tags=["nbval-check-output"]
def ppo_weights(log_probs, old, A):
    r = torch.exp(log_probs - old)  # (n, seq - 1)
    clipped = ((A > 0) & (r > 1 + P.ppo.clip)) | ((A < 0) & (r < 1 - P.ppo.clip))
    return torch.where(clipped, 0.0, r * A)


later = old + 0.3 * mask * torch.linspace(-1, 1, mask.shape[1], device=mask.device)  # the policy has moved
same = [torch.equal(ppo_weights(now, old, A), P.ppo.clipped_weighting(now, old, A, mask)[0]) for now in (old, later)]
print("c = A on fresh samples:", torch.equal(ppo_weights(old, old, A), A), " same as the library's:", all(same))
_ = unwrap(policy)  # an adapter, if there is one, leaves the SFT model

# %% [markdown]
# ## Gates
#
# An experiment that cannot see an effect says nothing if it sees none. So some things are asked of it first, on seeds that
# decide nothing: answers that differ from prompt to prompt, a base model with something left to learn, training that is not
# over at once, a $G$ above its noise, a policy that still speaks, a reward as good as the pairs. None of this knows a claim.
# If a gate is not met, the seeds that decide are not run.

# %%
parallel({"tuning seeds": P.jobs_on(P.tuning_seeds)}, P.hardware.workers)
gates = P.gates_on(P.tuning_seeds) if P.tuning_seeds else []
P.check_gates(gates)
as_gates(gates).rename_axis(columns=counted({"tuning seeds": len(P.tuning_seeds)})) if gates else "no tuning seeds here"

# %% [markdown]
# ## Run
#
# For every seed there is one run of DPO and one of PPO, with snapshots of the weights. When a run has ended, its final policy
# answers held-out prompts. These answers are $D'$. Then $G$ is measured at every snapshot, on training pairs for DPO, and on
# fresh samples of the snapshot's policy for PPO. These pairs or samples are the *probe*. The probe and $D'$ are cut in halves,
# and the differences of the halves tell how noisy a measurement is.

# %%
parallel({"trained and measured": P.jobs_on(P.seeds)}, P.hardware.workers)

# %%
runs = P.by_method()  # {"dpo": a run for each seed, "ppo": likewise}
along = {method: [P.alignment(r.training).load() for r in some] for method, some in runs.items()}  # G and the rest
histories = {method: [r.training.load() for r in some] for method, some in runs.items()}  # what training logged
progress = {method: some[0].progress for method, some in along.items()}  # (steps,): share of training done

# %% [markdown]
# The same gates, on the seeds of this run:

# %%
own_gates = P.gates_on(P.seeds)
as_gates(own_gates).rename_axis(columns=counted({"seeds": len(P.seeds)}))

# %% [markdown]
# ### Did they learn?
#
# Sampled answers to held-out prompts, before and after. The gain is in the judge's score, prompt by prompt: in the oracle's
# utility here. Its interval is over prompts. If a policy had collapsed, few answers would be different, the KL would be high,
# or answers would have faults. The columns of $D'$ say how many of its answers the oracle can read, and how many came to an end.

# %%
before = P.answers_stage(None).load()
answers = {str(r): P.answers_stage(r.training).load() for some in runs.values() for r in some}
outcomes = {who: P.gain(before, after) for who, after in answers.items()} if P.judge_is_apart else {}
responses = {"SFT": P.speech(before) | {"KL to SFT, nats": np.nan}}
responses |= {who: P.speech(after) | {"KL to SFT, nats": after.kl} for who, after in answers.items()}
gains = {who: {"gain in utility" if P.utility else "gain in the judge's score": gain} for who, gain in outcomes.items()}
as_table({who: row | gains.get(who, {}) for who, row in responses.items()}, {"held-out prompts": len(asked)})

# %%
run.figure("training", plots.training_curves(logged(histories, oracle=bool(P.utility))))

# %% [markdown]
# **Read it.** Thin lines are seeds. DPO's loss begins at $\ln 2$, and its accuracy at 0, since a margin of 0 does not count as
# right. In the default run the reward of PPO rises to the end, and the oracle's utility stays flat: PPO learns what the reward gets
# wrong, too. This run is small, and it misses three gates: training is soon over, $G$ is precise at no checkpoint, and some answers
# are broken. So read its curves as a demonstration. The `full` run met them on its tuning seeds.
#
# ## G along training
#
# The six panels of the paper. Thin lines are seeds, and thick ones are their mean. The grey band is twice the standard error of
# one measurement, from the halves. A curve within the band cannot be told from zero at that moment.

# %%
g = {method: measured.g_by_component(some) for method, some in along.items()}  # part: (seeds, steps)
noise = {method: measured.noise_by_component(some) for method, some in along.items()}
run.figure("six_panels", plots.six_panels(progress, g, noise))

# %% [markdown]
# **Read it.** Each row has a scale of its own, since advantages are whitened and DPO's weights are at most $\beta$. So compare
# shapes. Two things are known beforehand. The black curve is the sum of the two curves in the middle, and also of the three
# on the right. And a part with larger weights has a larger $G$ for that reason alone. Before DPO's first update all its
# weights are equal, so there are no tertiles yet.
#
# Checkpoints lie evenly in the logarithm of updates, because most is learned early. In the default run $G$ of DPO stays above
# zero to its end. Its positive part begins above zero and ends below, and its negative part takes over. $G$ of PPO falls by half.
# From a fifth of training on, most of it lies within the grey band, so this run cannot tell it from zero there. (The `full` run
# can: it stays above zero.) Most of it is positive learning's.
#
# ## Common mode
#
# Positive and negative learning need not be two things. Let $S = (G_+ + G_-)/2$ and $C = (G_+ - G_-)/2$. If the samples are the
# policy's own, then $\mathbb E_{y\sim\pi}[\nabla\log\pi(y)] = 0$: what makes one response likelier makes others less likely. So
# $\mathbb E[s] = 0$ for every direction $v$. With equal $|A|$ everywhere,
#
# $$2C = G_+ - G_- = -\,\mathbb E[|A|\,s] = -|A|\;\mathbb E[s] = 0,$$
#
# and positive and negative learning have *the same* $G$, whatever the reward is. They can only differ if $|A|$ goes together
# with $s$, or if the samples are not the policy's own. Try it on the smallest policy there is: five responses, each with a
# logit of its own, in exact fractions. Here $s_y = v_y - \sum_z \pi_z v_z$.

# %% tags=["nbval-check-output"]
pi = [Fraction(k, 15) for k in (5, 4, 3, 2, 1)]  # of five responses
direction = [Fraction(k) for k in (3, -2, 1, 0, -4)]  # v: any gradient on D'
slope = [x - sum(p * y for p, y in zip(pi, direction, strict=True)) for x in direction]  # s = grad log pi . v


def up_and_down(advantages):
    pulls = [-p * a * s_ for p, a, s_ in zip(pi, advantages, slope, strict=True)]
    return [sum(x for x, a in zip(pulls, advantages, strict=True) if (a > 0) == up) for up in (True, False)]


signs = list(itertools.product((-1, 1), repeat=5))  # every way to call a response good or bad
print("G+ = G- with equal |A|, for all", len(signs), "signs:", all(len(set(up_and_down(a))) == 1 for a in signs))
generator = np.random.default_rng(0)
drawn_at_random = [[sign * int(generator.integers(1, 10)) for sign in a] for a in signs for _ in range(20)]
apart = [up > 0 > down for up, down in map(up_and_down, drawn_at_random)]
print(f"G+ > 0 > G- with |A| at random: {np.mean(apart):.0%} of {len(apart)}")

# %% [markdown]
# So what the paper calls the roles of positive and negative learning in PPO can come from its weights alone. The same holds for
# DPO if its pairs are the policy's own samples. Pairs of another generator have $\mathbb E[s] \neq 0$. Now measure both sources:
#
# $$C = \underbrace{-\tfrac12\,\overline{|c|}\textstyle\sum s}_{\text{whose samples they are}}
# \;\underbrace{-\tfrac12\textstyle\sum (|c|-\overline{|c|})\,s}_{\text{the weights}}.$$

# %%
common = {method: measured.common_mode(some) for method, some in along.items()}  # source: (seeds, steps)
run.figure("common_mode", plots.common_mode(progress, common))

# %%
sizes = {m: {part: np.sqrt((x**2).mean()) for part, x in parts.items()} for m, parts in common.items()}
pd.DataFrame(sizes).T.round(3).rename_axis(columns=counted({"measurements": common["dpo"]["C"].size}))

# %% [markdown]
# **Read it.** The two methods differ for two different reasons. In PPO the orange line is noise, as the identity says, and $C$ is
# the weights' alone: whatever makes positive learning pull harder than negative learning is how $|A|$ goes together with $s$. In
# DPO the purple line is zero, because the weights of its pairs hardly differ. Its $C$ is all in the pairs. They come from the
# generator of the world and not from the policy, and the further the policy moves away from them, the more $C$ falls: pushing
# *both* responses of a pair down raises $D'$. That is what turns the roles of positive and negative learning round in DPO.
#
# ## Inner epochs
#
# PPO uses the samples of an iteration more than once: it passes over them `sample_training.epochs` times. The six panels only
# show the first pass, where the samples are fresh. When a later epoch begins, the policy has moved on, and the samples are
# *stale*: an older policy has drawn them. A token that has become more likely since then has $r > 1$ and counts more, and one
# that has become less likely counts less. The clip takes the gradient of tokens that have already moved far in the direction
# that their advantage wants, so the others are left.
#
# Here is $G$ at both moments on the *same* samples, each time with the $v$, $s$ and $c$ of that moment. (The samples are those
# of the probe. The same policy has drawn them as those of training, and training has not used them.)

# %%
epochs = measured.g_by_epoch(along["ppo"])  # part: (epochs, seeds, steps)
run.figure("inner_epochs", plots.inner_epochs(progress["ppo"][:-1], epochs))

# %%
means = {part: {f"epoch {i}": curves.mean() for i, curves in enumerate(some, 1)} for part, some in epochs.items()}
as_table(means, {"measurements": epochs["whole"][0].size})

# %% [markdown]
# **Read it.** Where the two lines lie apart, one pass over the samples has changed what the next pass does to the final
# responses. In the default run $G$ is smaller in the second epoch than in the first for most of training. At its end the two
# lines lie on each other: by then the learning rate has fallen, and hardly any token is clipped.
#
# ## The weights themselves
#
# Reviewers of the paper asked for the distributions of $w$ and $|A|$. The lines are the borders of the tertiles.

# %%
distributions = {method: measured.weights_at(some) for method, some in along.items()}
run.figure("weights", plots.weight_distributions(distributions))

# %% [markdown]
# **Read it.** Before DPO's first update every pair has the weight $\beta/2$. At the end pairs whose margin has grown have a smaller
# one. In the default run the weights hardly spread: such a short training moves log-ratios by a few nats.
#
# ## Token by token
#
# This is what only the forward-mode pass can show: the pull $-c\,s$ of every token, half-way through training. Blue tokens
# pull the model towards its final responses, red ones push it away.

# %%
labels = {"dpo": ("DPO chosen  ", "DPO rejected"), "ppo": ("PPO sample  ",)}
tokens = {method: some[0].tokens[measured.half_way(some[0])] for method, some in along.items()}  # of the first seed
picture = [row for method, rows_ in tokens.items() for row in measured.pulls(rows_, labels[method])]
run.figure("tokens", plots.token_picture(picture)) if P.show_texts else "texts are not shown"

# %% [markdown]
# **Read it.** Most tokens pull nowhere: once a sentence has begun, the next word is settled. The words that decide something
# have the colour: the first word of a sentence, the tool, or the end.
#
# ## Layer by layer

# %%
by_layer = {method: measured.g_by_layer(some) for method, some in along.items()}  # part: (places, steps)
places = list(along["dpo"][0].layers[0]["whole"])
run.figure("layers", plots.layer_map(places, progress, by_layer))

# %% [markdown]
# **Read it.** The places of one moment add up to $G$ of the six panels. In the default run most of DPO's is in
# the head. PPO's is in the first layer and in the head; which of the two leads changes from checkpoint to checkpoint.
#
# ## Does it hold under Adam?
#
# $G$ speaks of plain gradient descent, and the paper leaves Adam open. Here is the **real** update of the optimiser at every
# measured step. The horizontal axis has what $v$ predicts of it, $v\cdot(\theta_{t+1}-\theta_t)$. The vertical axis has what it
# did to the NLL of $D'$.

# %%
predicted = {method: np.array([x.predicted[:-1] for x in some]) for method, some in along.items()}
changed = {method: np.array([x.changed[:-1] for x in some]) for method, some in along.items()}
run.figure("adam", plots.first_order(predicted, changed))

# %% [markdown]
# **Read it.** Points on the line say that the first order is enough: $v$ predicts what a real step does. The table asks
# another question. Does Adam's step have the sign that $G$ foretells? $G$ is above zero and the NLL of $D'$ falls nearly always, for
# $D'$ is where the run ends. So a share near 1 is what one sign for all would have too; look at the cosines instead. That of
# $v$ and the gradient has two ceilings, the cosines of two halves of the same data.

# %%
adam = {method.upper(): measured.adams_steps(some) for method, some in along.items()}
pd.DataFrame(adam).round(2).rename_axis(columns=counted({"measured steps": predicted["dpo"].size}))

# %% [markdown]
# ## Claims
#
# Each rule was written before its run (`claims/dynamics.py`), and so was what it can see: what would be true if the claim were
# wrong, which effect counts, and with which probability these seeds show it. Tertiles are compared for each unit of weight, so
# that a heavier third does not win for that reason alone. Intervals are Student's, over seeds. The verdicts that count are
# those of the `full` profile.

# %%
registration = registered("02_g_dynamics")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
units = {method: measured.per_weight(some) for method, some in along.items()}  # G for each unit of weight
thirds = {m: {part: units[m][part] for part in ("bottom", "middle", "top")} for m in g}
curves = {m: Curves(**g[m] | thirds[m], weight=measured.mean_weights(along[m])) for m in g}
verdicts = withheld(dynamics_claims(curves["dpo"], curves["ppo"]), len(asked), "prompts of D'")  # too few: no verdict
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted({"prompts of D'": len(asked), "seeds": len(P.seeds)}))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": outcomes,
        "reward": reward_quality,
        "judge": judge_quality,
        "responses": responses,
        "adam": adam,
        "dominance": {m: {"early": some.dominance(0), "late": some.dominance(2)} for m, some in curves.items()},
        "opposite_signs": {m: np.mean(parts["positive"] * parts["negative"] < 0) for m, parts in g.items()},
        "above_noise": {m: np.mean(np.abs(parts["whole"]) > 2 * noise[m]["whole"]) for m, parts in g.items()},
        "inner_epochs": means,
        "gates": gates,
        "own_gates": own_gates,
        "common_mode": sizes,
        "registration": registration.sha256,
    },
    series={
        "progress": progress,
        "g": g,
        "noise": noise,
        "per_weight": units,
        "common_mode": common,
        "cosine": {method: [x.cosine for x in some] for method, some in along.items()},
        "nll": {method: [x.nll for x in some] for method, some in along.items()},
        "predicted": predicted,
        "changed": changed,
        "layers": by_layer,
        "inner_epochs": epochs,
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Their solutions are in [solutions/02_g_dynamics_solutions](solutions/02_g_dynamics_solutions.ipynb).
#
# 1. **Is "near zero" a property of PPO?** Set `measurement: dict = {"final_temperature": 1.0}`. Then $D'$ is sampled, and at
#    the end of training $\mathbb E_{y'\sim\pi}[\nabla\log\pi(y')] = 0$. So $v$ vanishes but for noise, and with it $G$ of
#    *any* loss. Which claims change their verdict?
# 2. **Sum or mean?** Set `measurement: dict = {"nll": "mean"}`, as earlier code of the group does. Each response of $D'$ then
#    counts the same, however long it is. Which curves change their sign?
# 3. **A better teacher, a worse teacher.** Set `reward: dict = {"kind": "oracle"}`, then
#    `reward: dict = {"kind": "model", "label_flips": 0.3}`. What happens to positive and negative learning?
# 4. **A unit of weight.** $G$ of a tertile grows with its weights. Divide it by its sum of weights:
#
#    ```python
#    total = np.array([x.total_weight for x in along["ppo"]])  # (seeds, steps, parts): sum of |c| / n
#    {part: (g["ppo"][part] / total[:, :, measured.PARTS.index(part)]).mean() for part in ("bottom", "middle", "top")}
#    ```
#
#    What is left of D6?
# 5. **Parts of your own.** Any mask is a part. Is it the first token of a response that counts?
#
#    ```python
#    is_first = (batch["completion_mask"][:, 1:].cumsum(1) == 1) & (c != 0)  # (8, seq - 1)
#    {"first token": pull[is_first].sum().item(), "the rest": pull[~is_first].sum().item()}
#    ```
#
#    Try the tool's name, or the refusal.
# 6. **More inner epochs.** Set `sample_training: dict = {"epochs": 4}`. What happens to $G$ in the last of them?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
