"""The answers of annotators, and the training targets made from them."""
