# %% [markdown]
# # 09 · Do positive and negative learning differ because of whose samples they see?
#
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778) splits the gradient alignment $G$ of
# DPO and PPO into positive learning ($c > 0$) and negative learning ($c < 0$), and finds that each has a role of its own (Figures
# 1b and 2b). Notebook 02 writes $S = (G_+ + G_-)/2$ for what the two have in common and **common mode** $C = (G_+ - G_-)/2$ for what
# sets them apart. On the policy's own samples, and with equal weights, $C$ is zero, whatever the reward is. So $C$ can have two
# reasons: the samples are not the policy's own, or the weights go together with what they weigh.
#
# Here both are measured against how far the samples are from the policy. The distance has knobs: temperature, top-p, how old the
# policy is that has drawn the samples, and the generator of DPO's pairs. If the roles follow the knobs, they are a property of the
# sampling, and not of learning from good or bad responses.
#
# **Predictions** (ours, not the paper's; derived below, and registered before any of these numbers was measured. For M1 and M6
# notebook 02 had shown as much, so they are confirmations):
#
# | | prediction | knob |
# |---|---|---|
# | M1 | on the policy's own samples nothing comes from whose samples they are | none turned |
# | M2 | if $D'$ is greedy, sharper samples make $C$ larger | temperature below 1 (top-p likewise) |
# | M3 | hotter samples make it smaller | temperature above 1 |
# | M4 | stale samples make it smaller | samples of an earlier policy |
# | M5 | PPO's ratio takes back what stale samples bring | the same |
# | M6 | the pairs that DPO learns from make it smaller at the end | pairs of a generator |
#
# **What is ours, because no source says it:** everything that notebook 02 names (its world, sizes, learning rates and runs are
# taken as they are), which decodings and policies are compared, and how pairs of a policy's own samples are labelled.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "09_common_mode"
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
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
temperatures: list = [0.5, 0.7, 1.0, 1.3]  # that samples are drawn at; 1.0 is the policy itself
top_ps: list = [0.8]  # the same, at temperature 1
shifts: list = [0.0, 1.0]  # of the generator of DPO's pairs; 0.0 are the pairs that it learns from
final_temperatures: list = [0.5, 1.0]  # of other D' beside the greedy one
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 1000}}
lora: dict = {}  # {"rank": 8} trains an adapter instead of all parameters
dpo: dict = {}  # beta
ppo: dict = {}  # clip, KL coefficient, GAE, values, ...
pair_training: dict = {}  # DPO's loop: learning rate, batch size, epochs, ...
sample_training: dict = {}  # PPO's loop: iterations, batch sizes, learning rate, ...
reward: dict = {}  # {"kind": "oracle"}; the training of a reward model
measurement: dict = {}  # D', and which updates have snapshots
sampling: dict = {}  # how much is drawn of every sampler
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.common_mode import CommonMode

P = CommonMode.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
from fractions import Fraction

import pandas as pd
import torch

from preflab import alignment
from preflab import common_mode as common
from preflab.claims import common_mode as rules
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.registration import registered
from preflab.decoding import Decoding, kl, next_tokens
from preflab.experiments.common_mode import agreement, roles
from preflab.figures import common_mode as plots
from preflab.generation import decode
from preflab.judging import as_table, counted
from preflab.likelihood import collate_responses
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start

run = start(P)
run.overview()

# %% [markdown]
# ## The identity, for any sampler
#
# Let $q$ be what the samples are drawn from, and $\pi$ the policy. Given the words before it, the next word pushes the policy by
#
# $$\mathbb E_{y\sim q}[\nabla\log\pi(y)] = -\nabla\,\mathrm{KL}(q\,\|\,\pi),$$
#
# because $\mathrm{KL}(q\,\|\,\pi)=\sum_y q\log q-\sum_y q\log\pi$, and only the second sum knows $\pi$. Learning from samples of $q$
# takes the policy towards $q$. With $q=\pi$ the KL has its minimum, and the push is zero: that is notebook 02's identity.
#
# Try it on five responses, each with a logit of its own. There $\partial\log\pi(y)/\partial\,\text{logit}_z = [y{=}z]-\pi_z$, so the
# push must be $q-\pi$. In exact fractions:

# %% tags=["nbval-check-output"]
pi = [Fraction(k, 15) for k in (5, 4, 3, 2, 1)]  # the policy
q = [Fraction(k, 20) for k in (4, 1, 6, 2, 7)]  # any sampler


def push(q, pi):
    return [sum(q_y * ((y == z) - pi_z) for y, q_y in enumerate(q)) for z, pi_z in enumerate(pi)]


print("E_q[grad log pi] = q - pi:", push(q, pi) == [a - b for a, b in zip(q, pi, strict=True)])
print("of its own samples:", [str(x) for x in push(pi, pi)])

# %% [markdown]
# ## What each knob must do
#
# The part of $C$ that comes from whose samples they are is $-\tfrac12 m\,\mathbb E_q[s]$, with $s=\nabla\log\pi\cdot v$, $v$ the gradient
# of the NLL of the final responses $D'$, and $m$ the mean of $|c|$. With the identity it is
#
# $$C_\text{samples} = \tfrac12\,m\;v\cdot\nabla\,\mathrm{KL}(q\,\|\,\pi).$$
#
# A step towards $D'$ goes along $-v$. So $C_\text{samples}$ is **above zero if a step towards the final responses brings the policy
# nearer to the sampler**, and below zero if it takes it away. Nothing else is needed:
#
# - *Own samples*: zero (M1).
# - *Temperature $T$*, $q\propto\pi^{1/T}$. To first order $\mathbb E_q[\nabla\log\pi]=-(\tfrac1T-1)\nabla H$, with $H$ the entropy of $\pi$.
#   Greedy final responses are what a sharper policy says more often. A step towards them lowers the entropy, so $C_\text{samples}>0$
#   for $T<1$ (M2) and $<0$ for $T>1$ (M3). Top-p also sharpens, so it has the sign of $T<1$.
# - *Stale samples*, $q=\pi_\text{earlier}$. The final responses lie ahead and the sampler behind: $C_\text{samples}<0$ (M4).
# - *Pairs of a generator*. The SFT model has learnt to speak like it, so at the start $q\approx\pi$. Training leaves it behind, and
#   the pairs become stale samples: $C_\text{samples}<0$ at the end (M6).
#
# On the tabular policy the statement about entropy is a derivative that can be checked. A little sharper, the push has the
# direction of lower entropy:

# %% tags=["nbval-check-output"]
logits = torch.tensor([1.0, 0.3, -0.2, 0.9, -2.0], dtype=torch.float64, requires_grad=True)
log_pi = torch.log_softmax(logits, -1)
entropy = -(log_pi.exp() * log_pi).sum()
downhill = -torch.autograd.grad(entropy, logits)[0]
for temperature in (0.5, 0.99, 1.01, 1.3):
    sharpened = Decoding(temperature=temperature).sampler(log_pi.detach()).exp()
    way = torch.cosine_similarity(sharpened - log_pi.detach().exp(), downhill, dim=0)
    print(f"temperature {temperature}: cosine of the push and of lower entropy {way:+.2f}")

# %% [markdown]
# **PPO has a third source.** Its weight is $c = rA$ with the ratio $r=\pi/\pi_\text{old}$. If $\pi_\text{old}$ is the sampler, then
# $\mathbb E_q[r\,\nabla\log\pi]=\mathbb E_\pi[\nabla\log\pi]=0$: the ratio takes back exactly what stale samples bring, but for what the
# clip cuts off (M5). A decoding is another matter. PPO takes $\pi_\text{old}$ at temperature 1 even if the samples were drawn otherwise,
# as most code does, so $r=1$ and nothing is taken back. With $|c| = a f$, where $a$ is $|A|$ (for DPO $w$) and $f$ the ratio where the clip
# leaves the gradient, else 0 (for DPO 1):
#
# $$C = \underbrace{-\tfrac12\,m\textstyle\sum s}_{\text{samples}}\;\underbrace{-\tfrac12\,m\textstyle\sum(f-1)\,s}_{\text{ratio}}\;
# \underbrace{-\tfrac12\textstyle\sum(a-m)f\,s}_{\text{weights}},\qquad m=\bar a .$$
#
# The sum of all three is $C$, whatever the sampler is.
#
# ## Try it on four prompts
#
# Draw from the SFT model at temperature 0.5. At every token both distributions are known, so the distance is exact:

# %%
print("The SFT model is trained once (about 50 s in the default run). Later runs load it.")
policy, tokenizer = P.base_model.fresh_policy(P.lora, seed=0), P.base_model.tokenizer()
four = P.pairs.train_pairs(P.seeds[0]).rows()["prompt"][:4]
cold = Decoding(temperature=0.5)
drawn = cold.draw(policy, tokenizer, four, max_new_tokens=P.max_new_tokens, seed=0, batch_size=4)
for text in decode(tokenizer, drawn) if P.show_texts else ():
    print(text)

# %%
batch = collate_responses(drawn, tokenizer.pad_token_id, policy.device)  # (4, seq)
log_probs = next_tokens(policy, batch)  # (tokens, vocabulary): log pi before every response token
log_q = cold.sampler(log_probs.detach())  # the same of the sampler: log-softmax of log pi / T
print(f"KL(q || pi) = {kl(log_q, log_probs).mean():.3f} nats a token")

# %% [markdown]
# The expected push of all these tokens is one backward pass: the gradient of $-\sum_y q(y)\log\pi(y)$, which differs from the KL by what
# does not know $\pi$. With $v$ it gives $C_\text{samples}$ without the luck of which word was drawn. On the policy's own
# samples it is zero, to rounding. Two other responses stand for $D'$:

# %% tags=["nbval-check-output"]
rows = P.pairs.train_pairs(P.seeds[0]).encoded(P.base_model)[4:6]
final = collate_responses([(r["prompt_ids"], r["chosen_ids"]) for r in rows], tokenizer.pad_token_id, policy.device)
parameters = alignment.parameters_of(policy)
v = alignment.nll_gradient(policy, [final], parameters)
for name_of, sampler in {"temperature 0.5": log_q, "its own": log_probs.detach()}.items():
    gradient = common.cross_entropy_gradient(policy, batch, sampler, parameters, size=4)
    expected = common.expected_samples(1.0, v, gradient, n=4)
    print(f"{name_of}: the samples bring nothing: {abs(expected) < 1e-3}")
_ = unwrap(policy)  # an adapter, if there is one, leaves the SFT model

# %% [markdown]
# ## Run
#
# The runs are those of notebook 02, a run of DPO and one of PPO for each seed. Three policies of each are looked at: the SFT model,
# one half-way, and the last. At each, responses to the same training prompts are drawn from every sampler, and weighed as the
# method weighs them: PPO scores them with its reward and its values; DPO gets pairs of two samples, labelled as the world labels
# its own. PPO's half-way policy is one inner epoch into an iteration, so the least stale samples are those of its own iteration.

# %%
print("The runs take about two minutes in the default run, if notebook 02 has not made them already.")
asked = P.prompts().messages()  # of D'
_ = P.reward_stage().folder  # PPO's reward
parallel({"trained and measured": P.jobs()}, P.hardware.workers)

# %%
runs = {method: [r.training for r in some] for method, some in P.by_method().items()}  # a run for each seed
found = {method: [P.common_mode(training).load() for training in some] for method, some in runs.items()}
moments = {method: P.moments(some[0]) for method, some in runs.items()}  # policy: updates
pd.DataFrame(moments).T.rename_axis(columns="updates of each policy")

# %% [markdown]
# ## C against each knob
#
# Bars are the sources of $C$, and their sum is $C$. Below each bar stands the setting, and the distance $\mathrm{KL}(q\,\|\,\pi)$ in nats a
# token. The probabilities of a generator are not known; there the number says how much more its words surprise the policy than the
# policy's own do (with a sign). A generator's shift says how much more often it says the right thing; 0 are the pairs of the data.
# Diamonds are what the samples part is expected to be from the distributions alone. Dots are seeds. First
# the policy half-way:

# %%
panels = {method: P.panels(some[0], found[method]) for method, some in runs.items()}  # method -> policy -> knob


def bars(moment, method):
    return P.bars(runs[method][0], moment, panels[method][moment])  # knob: what stands below the bars, and the bars


run.figure("half_way", plots.by_knob({method: bars("half-way", method) for method in runs}))

# %% [markdown]
# The last policy:

# %%
run.figure("end", plots.by_knob({method: bars("end", method) for method in runs}))

# %% [markdown]
# And the SFT model, before which there is nothing stale:

# %%
run.figure("sft", plots.by_knob({method: bars("SFT", method) for method in runs}))

# %% [markdown]
# **Read it.** In the default run the orange bars go as predicted: up for sharper decodings, down for hotter ones and for stale
# samples, nearly nothing on the policy's own. In DPO they are all there is, because the weights of its pairs hardly differ. Pairs of its
# own samples leave little of $C$; the pairs of the data pull it down as soon as the policy has left them. In PPO the blue
# bar of the ratio takes back most of what the SFT model's samples bring. On its own samples, what is left of PPO's $C$ is the weights'
# and noise.
#
# The generator of shift 1 says the right thing more often and surprises the policy *less* than the policy itself does, as a sharper
# decoding would. Still its samples part has not the sign of a sharper decoding: surprise is no distance, and the direction counts.
#
# ## What it makes of positive and negative learning
#
# $G_+=S+C$ and $G_-=S-C$. If $C$ is larger than $\lvert S\rvert$, the two have different signs. The last policy again:

# %%
by_setting = {method.upper(): roles(bars("end", method)) for method in runs}
signs = {f"{m}, {setting}": row for m, of in by_setting.items() for setting, row in of.items()}
as_table(signs, {"seeds": len(P.seeds)})

# %% [markdown]
# **Read it.** In the default run PPO at temperature 0.5 has $G_+>0>G_-$ on both seeds: the pattern of the paper's Figure 2b. On the
# same policies, with the same reward, the parts are small beside that at temperature 1, and the two seeds differ in sign. At 1.3 one of
# them has the pattern turned round. So the pattern alone says nothing of good and bad responses. Whoever reports it has to say how the
# samples were drawn. (We do not know how
# the paper drew its samples.)
#
# ## Against the distance
#
# The samples part alone, against $\mathrm{KL}(q\,\|\,\pi)$, half-way. Lines join what is expected, points are measured. Temperatures below
# and above 1 lie on the two branches of one curve.

# %%
known = {m: {knob: of for knob, of in panels[m]["half-way"].items() if knob != "generator"} for m in panels}
run.figure("distance", plots.against_distance(known))

# %%
agreements = {
    method.upper(): agreement(of for by_knob in some.values() for of in by_knob.values())
    for method, some in panels.items()
}
as_table(agreements, {"seeds": len(P.seeds)})

# %% [markdown]
# **Read it.** The measured parts follow the lines (DPO's at temperature 1.3 misses its line), and the table says by how many standard
# errors they miss them. The identity is exact, so this checks the instrument. So the samples part can
# be foretold from the two distributions and the direction of $D'$, but for its scale $m$: no reward, no label.
#
# ## How far it hangs on D'
#
# $D'$ is greedy so far. The sign of the samples part follows from what $D'$ is, so other $D'$ need not agree: sampled ones, and greedy
# answers to the prompts of the world's other objective, which are hazardous more often. The last policy:

# %%
run.figure("finals", plots.by_knob({m: P.bars_of_finals(some[0], "end", found[m]) for m, some in runs.items()}))

# %% [markdown]
# **Read it.** In the default run greedy answers to the other prompts say the same, with the same sign. The more $D'$ is sampled, the less
# is left: at temperature 1 $D'$ are samples of the last policy itself, so $v$ vanishes but for noise, and everything with it. The sign that
# a decoding gives to $C$ is a statement about *greedy* final responses.
#
# ## Verdicts on the predictions
#
# Each rule was written and committed before its numbers were measured (`claims/common_mode.py`), with what would be true if the
# prediction were wrong, the effect that counts, and how likely five seeds show it. The verdicts that count are those of the `full`
# profile; those of the default run come from few seeds.

# %%
registration = registered("09_common_mode")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
numbers = rules.seeds_of(found, P.names())  # rule: (seeds,)
verdicts = withheld(rules.common_mode_claims(numbers), len(asked), "prompts of D'")  # too few: no verdict
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted({"prompts of D'": len(asked), "seeds": len(P.seeds)}))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "moments": moments,
        "agreement": agreements,
        "numbers": numbers,
        "roles": by_setting,
        "registration": registration.sha256,
    },
    series={
        "panels": panels,
        "finals": {
            m: {k: of for k, (_, of) in P.bars_of_finals(some[0], "end", found[m]).items()} for m, some in runs.items()
        },
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. **A corrected ratio.** PPO's ratio knows nothing of the decoding. Take $\pi/q$ in its place: in `SamplesDrawer` of
#    [drawn.py](../lib/preflab/stages/drawn.py), `old = said(decoding.sampler(log_probs), batch)`. Does the ratio take back what
#    temperature 0.5 brings?
# 2. **More of the same.** Set `shifts: list = [-1.0, 0.0, 1.0, 2.0]`. Is a generator that is worse than the SFT model stale too?
# 3. **Colder, hotter.** Set `temperatures: list = [0.3, 0.5, 0.8, 1.0, 1.2, 2.0]`. Where does the first order end?
# 4. **No clip.** Set `ppo: dict = {"clip": 0.9}`. What happens to M5? (PPO then trains without it, too.)
# 5. **Sum or mean?** Set `measurement: dict = {"nll": "mean"}`. Which signs stay?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
