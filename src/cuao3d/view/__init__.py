"""A store in the browser: its scenes in 3D, coloured by what is asked, for anybody who opens the page.

- `asking.py`: what is typed, and the answers to it.
- `layers.py`: one scene in the colours of each layer.
- `session.py`: what a viewer wants, and the picture that this is.
- `worker.py`: the newest work first; what is out of date is dropped.
- `pane.py`: the pane and the points of one browser, on viser.
- `server.py`: the server on this machine.
"""
