"""A project in which people answer: its folder, photos, training process, and exchange with other tools."""
