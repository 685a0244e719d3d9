"""Fine-tune MiniLM to tell good reviews from bad ones with TensorFlow: a GradientTape, one seed per step.

python examples/finetune_tensorflow.py [seed]
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"  # tf.optimizers are Keras's

import tensorflow as tf
from reviews import LEARNING_RATE, Reviews, report, seed_of, trained

import zoo


def finetune(seed):
    """Accuracy on the held-out sentences, the share of the commonest class there, and the loss of each step."""
    model = zoo.load("minilm", "tensorflow", train=True)
    reviews = Reviews(model.tokenizer, seed)
    weight, bias = tf.Variable(reviews.head), tf.Variable(tf.zeros(len(reviews.head)))
    variables = [weight, bias, *(x for name, x in model.params.items() if trained(name))]
    optimizer = tf.optimizers.Adam(LEARNING_RATE, epsilon=1e-8)

    def logits_of(inputs, rng=None):
        mask = tf.cast(inputs["attention_mask"], tf.float32)[..., None]
        hidden = model.apply(model.params, rng=rng, **inputs)["last_hidden_state"]
        pooled = tf.reduce_sum(hidden * mask, 1) / tf.reduce_sum(mask, 1)
        return tf.matmul(pooled, weight, transpose_b=True) + bias

    @tf.function(autograph=False)
    def step(inputs, labels, number):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = logits_of(inputs, rng=tf.stack([seed, number]))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    losses = []
    for number, inputs, labels in reviews.batches():
        given = {name: tf.constant(x) for name, x in inputs.items()}
        losses.append(float(step(given, tf.constant(labels), tf.constant(number))))
    return *reviews.accuracy(logits_of), losses


if __name__ == "__main__":
    report("TensorFlow", *finetune(seed_of(sys.argv)))
