// Runs in every page before JupyterLab does. It listens to the kernel's messages and measures inside the page, so that neither
// polling nor the round trip between Python and the browser is part of what is reported.
window.coursekit = (() => {
  const TRACEBACK = "Traceback (most recent call last)";
  const WIDGET = "application/vnd.jupyter.widget-view+json";
  const pending = new Set(); // requests on the shell channel that the kernel has not finished
  const logged = []; // kernel errors that belong to no cell: JupyterLab shows them in its log console only
  let calm = 0;

  const notebook = () => window.jupyterapp?.shell?.currentWidget;
  const plain = (text) => text.replace(/\u001b\[[0-9;]*m/g, "");

  // Await the document, its session and the kernel, then listen. Set `state.phase` on the way, for the message of a timeout.
  const connect = async (state) => {
    const panel = notebook();
    state.phase = "context.ready";
    await panel.context.ready;
    state.phase = "sessionContext.ready";
    await panel.sessionContext.ready;
    state.phase = "kernel.info";
    const kernel = panel.sessionContext.session.kernel;
    await kernel.info;
    kernel.anyMessage.connect((_, { msg, direction }) => {
      if (direction === "send" && msg.channel === "shell") pending.add(msg.header.msg_id);
    });
    kernel.iopubMessage.connect((_, msg) => {
      const type = msg.header.msg_type;
      const parent = msg.parent_header ?? {};
      if (type === "status" && msg.content.execution_state === "idle") pending.delete(parent.msg_id);
      if (type === "error" && parent.msg_type !== "execute_request") logged.push(plain(msg.content.traceback.join("\n")));
      if (type === "stream" && msg.content.name === "stderr" && msg.content.text.includes(TRACEBACK)) logged.push(plain(msg.content.text));
    });
    // A widget's views are put into the page piece by piece after its cell has finished.
    new MutationObserver((changes) => {
      if (changes.some(({ target }) => target.closest?.(".jp-OutputArea"))) calm = 0;
    }).observe(panel.node, { childList: true, subtree: true });
    state.phase = "ready";
  };

  const codeCells = () => {
    const cells = [];
    const list = notebook().content.model.cells;
    for (let i = 0; i < list.length; i++) {
      const model = list.get(i);
      if (model.type === "code" && model.sharedModel.getSource().trim()) cells.push({ index: i, model });
    }
    return cells;
  };

  const runAll = async (state) => {
    const { commands } = window.jupyterapp;
    await commands.execute("notebook:clear-all-cell-outputs"); // saved outputs and counts must not pass for this run's
    state.phase = "running";
    try {
      await commands.execute("notebook:run-all-cells");
      state.phase = "finished";
    } catch (error) {
      state.phase = "refused: " + error;
    }
  };

  // Code cells that have not both run and come to rest. A cell after a failed one never runs: `runAll` says when to stop waiting.
  const unfinished = () => codeCells()
    .filter(({ model }) => model.executionCount === null || (model.executionState ?? "idle") !== "idle")
    .map(({ index }) => index);

  const cellErrors = () => codeCells().flatMap(({ index, model }) => model.outputs.toJSON()
    .filter((output) => output.output_type === "error")
    .map((output) => `cell ${index}: ` + plain(output.traceback.join("\n") || `${output.ename}: ${output.evalue}`)));

  const brokenWidgets = () => [...document.querySelectorAll(".jupyter-widgets-error-widget, .jupyter-widgets .jp-OutputArea-error")]
    .map((element) => element.innerText);

  // How many widgets among the cells' outputs the page shows nothing of yet.
  const unrendered = () => {
    const expected = codeCells().flatMap(({ model }) => model.outputs.toJSON()).filter((output) => output.data?.[WIDGET]).length;
    const shown = [...notebook().node.querySelectorAll(".jp-OutputArea-output > .jupyter-widgets")]
      .filter((element) => !element.parentElement.closest(".jupyter-widgets")).length;
    return expected - shown;
  };

  // Called once per animation frame: true after three frames in a row in which no request was in flight and no output changed.
  // The widgets hold back a slider's next value until the kernel is idle and send it at once then, so one calm frame is not enough.
  const isCalm = () => (calm = pending.size === 0 ? calm + 1 : 0) >= 3;
  const resetCalm = () => { calm = 0; };

  // A number for what the picture shows, from its pixels: a new `src` with the same picture in it does not count as a change.
  const fingerprint = async (image) => {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const words = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    let hash = 0x811c9dc5;
    for (const word of words) hash = Math.imul(hash ^ word, 0x01000193);
    return `${canvas.width}x${canvas.height}:${(hash >>> 0).toString(16)}`;
  };

  // Milliseconds from each key press on `handle` to the next picture that has loaded, collected in `samples` until `stop()`.
  const stopwatch = (handle, image) => {
    const samples = [];
    let pressed = null;
    let replaced = false;
    const onKey = (event) => { pressed = event.timeStamp; replaced = false; };
    const onLoad = () => {
      if (pressed === null || !replaced) return;
      samples.push(performance.now() - pressed);
      pressed = null;
    };
    const observer = new MutationObserver(() => { replaced = true; });
    observer.observe(image, { attributes: true, attributeFilter: ["src"] });
    handle.addEventListener("keydown", onKey, { capture: true });
    image.addEventListener("load", onLoad);
    const stop = () => {
      observer.disconnect();
      handle.removeEventListener("keydown", onKey, { capture: true });
      image.removeEventListener("load", onLoad);
      return samples;
    };
    return { samples, stop };
  };

  return { notebook, connect, runAll, unfinished, unrendered, cellErrors, brokenWidgets, logged, isCalm, resetCalm, fingerprint, stopwatch };
})();
