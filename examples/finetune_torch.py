"""Fine-tune MiniLM to tell good reviews from bad ones with PyTorch: transformers' own module, torch's own dropout.

python examples/finetune_torch.py [seed]
"""

import sys

import torch
from reviews import CLASSES, LEARNING_RATE, WIDTH, Reviews, report, seed_of, trained

import zoo


def finetune(seed):
    """Accuracy on the held-out sentences, the share of the commonest class there, and the loss of each step."""
    torch.manual_seed(seed)
    model = zoo.load("minilm", "torch")
    reviews = Reviews(model.tokenizer, seed)
    encoder, head = model.module, torch.nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(reviews.head))
        head.bias.zero_()
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(trained(name))

    def logits_of(inputs):
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = encoder(**inputs).last_hidden_state
        return head((hidden * mask).sum(1) / mask.sum(1))

    parameters = [p for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    losses = []
    encoder.train()
    for _, inputs, labels in reviews.batches():
        logits = logits_of({name: torch.from_numpy(x) for name, x in inputs.items()})
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    encoder.eval()
    with torch.no_grad():
        return *reviews.accuracy(lambda x: logits_of({n: torch.from_numpy(a) for n, a in x.items()})), losses


if __name__ == "__main__":
    report("torch", *finetune(seed_of(sys.argv)))
