# %% [markdown]
# # 09
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
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 88
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
temperatures: list = [0.5, 0.7, 1.0, 1.3]  # that samples are drawn at; 1.0 is the policy itself
top_ps: list = [0.7, 0.9]  # the same, at temperature 1
shifts: list = [0.0, 1.0]  # of the generator of DPO's pairs; 0.0 are the pairs that it learns from
final_temperatures: list = [0.5, 1.0]  # of other D' beside the greedy one
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}
lora: dict = {}
dpo: dict = {}
ppo: dict = {}
pair_training: dict = {}
sample_training: dict = {}
reward: dict = {}
measurement: dict = {}
sampling: dict = {}  # how much is drawn of every sampler
hardware: dict = {}  # device, dtype, workers
# %%
