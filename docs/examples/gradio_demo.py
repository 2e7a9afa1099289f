"""Several methods answer one question side by side, on a page: `python gradio_demo.py --help`."""

import argparse

import gradio as gr

import cdkit


def build(name: str = "micro") -> gr.Interface:
    """The page, for a model that `cdkit.load_model` knows by this name."""
    model, processor = cdkit.load_model(name, device="auto")
    adapter = cdkit.adapter_for(model)

    def answers(image, question, methods):
        if image is None:
            raise gr.Error("Give an image first.")
        prompt = adapter.prompt(question, images=1, processor=processor)
        inputs = processor(images=[image], text=[prompt], return_tensors="pt").to(model.device)
        length = inputs["input_ids"].shape[1]
        rows = []
        for method in methods:
            try:
                with cdkit.attach(model, cdkit.load(method), processor=processor):
                    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
                words = processor.decode(out[0, length:], skip_special_tokens=True)
            except cdkit.CdkitError as error:  # such as a method that is defined for beams alone
                words = f"refused: {error}"
            rows.append([method, words])
        return rows

    runnable = [each for each in cdkit.presets() if not cdkit.load(each).lacks]
    return gr.Interface(
        answers,
        [
            gr.Image(cdkit.example_image() if name == "micro" else None, type="pil", label="Image"),
            gr.Textbox("Please describe this image in detail.", label="Question"),
            gr.Dropdown(
                runnable, value=["plain", "vcd", "cmac"], multiselect=True, label="Methods"
            ),
        ],
        gr.Dataframe(headers=["method", "answer"], wrap=True, label="Answers"),
        title=f"Contrastive decoding: {name}",
        flagging_mode="never",
        analytics_enabled=False,
    )  # Gradio runs one call at a time, as a method needs the model for itself


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="micro", help="micro, a folder, or a name on the hub")
    parser.add_argument("--port", type=int, default=7860)
    given = parser.parse_args()
    build(given.model).launch(server_port=given.port)
