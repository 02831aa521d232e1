"""A run of ``train_net.py`` as one self-contained HTML page; several runs side by side."""
