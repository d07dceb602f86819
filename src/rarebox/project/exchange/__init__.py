"""Questions that people answer in Label Studio or CVAT: which ones are sent, and how results become answers."""
