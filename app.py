"""Starts the dashboard: python app.py. Also the entry of a Hugging Face Space."""

from mst.dashboard import build_app, launch

demo = build_app()

if __name__ == "__main__":
    launch(demo)
