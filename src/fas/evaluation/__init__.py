"""How well a network does: perplexity of language models, scores of classifiers."""
