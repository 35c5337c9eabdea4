"""The live view's facts and lines; its HTML is made in `nbsync.notebook`."""
