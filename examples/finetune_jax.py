"""Fine-tune MiniLM to tell good reviews from bad ones with JAX and optax: a pure function, jitted, one key per step.

python examples/finetune_jax.py [seed]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reviews import LEARNING_RATE, Reviews, report, seed_of, trained

import zoo


def finetune(seed):
    """Accuracy on the held-out sentences, the share of the commonest class there, and the loss of each step."""
    model = zoo.load("minilm", "jax", train=True)
    reviews = Reviews(model.tokenizer, seed)
    frozen = {name: x for name, x in model.params.items() if not trained(name)}
    params = {name: x for name, x in model.params.items() if trained(name)}
    head = {"weight": jnp.asarray(reviews.head), "bias": jnp.zeros(len(reviews.head))}
    params = {"encoder": params, "head": head}
    optimizer = optax.adam(LEARNING_RATE)
    state = optimizer.init(params)

    def logits_of(params, inputs, key=None):
        mask = inputs["attention_mask"][..., None]
        hidden = model.apply({**frozen, **params["encoder"]}, rng=key, **inputs)["last_hidden_state"]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return pooled @ params["head"]["weight"].T + params["head"]["bias"]

    @jax.jit
    def step(params, state, inputs, labels, key):
        def loss_of(params):
            logits = logits_of(params, inputs, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, slopes = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    key, losses = jax.random.key(seed), []
    for number, inputs, labels in reviews.batches():
        params, state, loss = step(params, state, inputs, labels, jax.random.fold_in(key, number))
        losses.append(float(loss))
    evaluate = jax.jit(logits_of)
    return *reviews.accuracy(lambda inputs: np.asarray(evaluate(params, inputs))), losses


if __name__ == "__main__":
    report("JAX", *finetune(seed_of(sys.argv)))
