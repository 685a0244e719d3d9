"""Fine-tune MiniLM to tell good reviews from bad ones with Keras: compile and fit, on the backend of KERAS_BACKEND.

python examples/finetune_keras.py [seed]
"""

import sys

import keras
from reviews import BATCH, LEARNING_RATE, LENGTH, Reviews, report, seed_of, trained

import zoo
from zoo.backends.keras import GraphModel


def finetune(seed):
    """Accuracy on the held-out sentences, the share of the commonest class there, and the loss of each step."""
    loaded = zoo.load("minilm", "keras", train=True)
    reviews = Reviews(loaded.tokenizer, seed)
    for name, variable in loaded.params.items():
        variable.trainable = trained(name)
    encoder = GraphModel(loaded.graph, loaded.params, output="last_hidden_state", seed=seed)

    given = {name: keras.Input((LENGTH,), dtype="int32", name=name) for name in reviews.train}
    mask = keras.ops.cast(given["attention_mask"], "float32")
    pooled = keras.layers.GlobalAveragePooling1D()(encoder(given), mask=mask)
    dense = keras.layers.Dense(len(reviews.head))
    model = keras.Model(given, dense(pooled))
    dense.set_weights([reviews.head.T, 0 * reviews.head[:, 0]])

    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = Losses()
    model.fit(reviews.train, reviews.train_labels, batch_size=BATCH, shuffle=False, callbacks=[losses], verbose=0)
    return *reviews.accuracy(lambda inputs: model.predict(inputs, verbose=0)), losses.each


class Losses(keras.callbacks.Callback):
    """The loss of each batch, out of the running mean that Keras gives."""

    def __init__(self):
        super().__init__()
        self.each, self._total = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.each.append(total - self._total)
        self._total = total


if __name__ == "__main__":
    report("Keras", *finetune(seed_of(sys.argv)))
