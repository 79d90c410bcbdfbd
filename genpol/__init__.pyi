from genpol.agents.config import TrainConfig as TrainConfig
from genpol.agents.config import usual as usual
from genpol.agents.deploy import load_trained as load_trained
from genpol.agents.expo import EXPO as EXPO
from genpol.agents.make import make_agent as make_agent
from genpol.agents.make import make_base as make_base
from genpol.agents.make import make_value as make_value
from genpol.commands.finetune.options import Finetune as Finetune
from genpol.commands.from_python import finetune as finetune
from genpol.commands.from_python import train as train
from genpol.commands.steer.command import steer as steer
from genpol.commands.steer.options import Steer as Steer
from genpol.commands.train.options import Train as Train
from genpol.policies.architecture import Architecture as Architecture
from genpol.policies.cloning import clone as clone
from genpol.policies.cloning_config import CloneConfig as CloneConfig
from genpol.policies.policy import ChunkPolicy as ChunkPolicy
from genpol.policies.policy import load_policy as load_policy
from genpol.steering.compose import Composed as Composed
from genpol.steering.paired_episodes import run_episodes as run_episodes
from genpol.steering.select import argmax as argmax
from genpol.steering.select import keep_if_better as keep_if_better
from genpol.steering.select import softmax as softmax
from genpol.steering.steered import Decision as Decision
from genpol.steering.steered import Steered as Steered
from genpol.steering.tuning import tune as tune

__version__: str
