"""A policy with Octo's interface, written for the JAX of its time and with the packages of Octo's.

It uses what Octo's own code uses and what is gone since: `jax.tree_map`, `jax.tree_leaves`,
`jax.random.KeyArray`, `jnp.clip(a_min=)`, `process_allgather` on one process, tensorflow's
`io.gfile`, names of tensorflow and dlimp in annotations, and distrax. Its folder is read by orbax,
which takes no relative path.
"""

from __future__ import annotations

import json
from functools import partial

import distrax
import dlimp as dl
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import tensorflow as tf
from flax import serialization
from jax.experimental import multihost_utils

PRNGKey = jax.random.KeyArray
BINS, HORIZON = 16, 4


def statistics_of(dataset: dl.DLataset) -> tf.Tensor:
    return tf.stack([row for row in dataset])


class OldOcto:
    """Bins of each action by a linear map of `proprio`."""

    def __init__(self, params, example_batch, dataset_statistics):
        self.params, self.config = params, {"model": {}}
        self.example_batch, self.dataset_statistics = example_batch, dataset_statistics

    @classmethod
    def from_example(cls, example_batch, dataset_statistics, seed=0):
        example_batch = multihost_utils.process_allgather(example_batch)
        example_batch = jax.tree_map(lambda x: x[:1], example_batch)
        size = example_batch["observation"]["proprio"].shape[-1]
        rng: PRNGKey = jax.random.PRNGKey(seed)
        params = {"kernel": jax.random.normal(rng, (size, HORIZON * 2 * BINS))}
        return cls(params, example_batch, dataset_statistics)

    def save_pretrained(self, step, checkpoint_path):
        manager = orbax.checkpoint.CheckpointManager(
            checkpoint_path, orbax.checkpoint.PyTreeCheckpointer()
        )
        manager.save(step, self.params)
        example, statistics = (
            tf.io.gfile.join(checkpoint_path, name)
            for name in ("example_batch.msgpack", "dataset_statistics.json")
        )
        if not tf.io.gfile.exists(example):
            with tf.io.gfile.GFile(example, "wb") as f:
                f.write(serialization.msgpack_serialize(self.example_batch))
        with tf.io.gfile.GFile(statistics, "w") as f:
            json.dump(jax.tree_map(lambda x: x.tolist(), self.dataset_statistics), f)

    @classmethod
    def load_pretrained(cls, checkpoint_path, step=None):
        with tf.io.gfile.GFile(
            tf.io.gfile.join(checkpoint_path, "example_batch.msgpack"), "rb"
        ) as f:
            example = serialization.msgpack_restore(f.read())
        with tf.io.gfile.GFile(
            tf.io.gfile.join(checkpoint_path, "dataset_statistics.json"), "r"
        ) as f:
            statistics = jax.tree_map(
                np.array, json.load(f), is_leaf=lambda x: not isinstance(x, dict)
            )
        size = jax.tree_leaves(example["observation"]["proprio"])[0].shape[-1]
        shapes = {"kernel": jax.ShapeDtypeStruct((size, HORIZON * 2 * BINS), jnp.float32)}
        manager = orbax.checkpoint.CheckpointManager(
            checkpoint_path, orbax.checkpoint.PyTreeCheckpointer()
        )
        params = manager.restore(manager.latest_step(), shapes)
        return cls(params, example, statistics)

    def create_tasks(self, texts):
        return {"language_instruction": jax.tree_map(jnp.asarray, np.zeros((len(texts), 1)))}

    def sample_actions(
        self, observations, tasks, rng: PRNGKey, argmax=False, sample_shape=(), temperature=1.0
    ):
        return self._sample(observations, rng, argmax, sample_shape, temperature)

    @partial(jax.jit, static_argnames=("self", "argmax", "sample_shape", "temperature"))
    def _sample(self, observations, rng, argmax, sample_shape, temperature):
        proprio = observations["proprio"][:, -1]
        logits = jnp.tanh(proprio @ self.params["kernel"])
        logits = logits.reshape(len(proprio), HORIZON, 2, BINS)
        if argmax:
            tokens = jnp.argmax(logits, axis=-1)
            tokens = jnp.broadcast_to(tokens, sample_shape + tokens.shape)
        else:
            dist = distrax.Categorical(logits=logits / temperature)
            tokens = dist.sample(seed=rng, sample_shape=sample_shape).astype(jnp.int32)
        return jnp.clip(tokens / BINS * 4 - 2, a_min=-1.5, a_max=1.5)
