"""The model as a web page: what is answered to a recording, and the page of Gradio that asks."""
