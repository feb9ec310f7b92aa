// One song's strip. `props.value.at` is where the clip begins; the server reads it with the next job.
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
const range = () => element.querySelector("input.frame");

function write() {
  const at = Number(range().value), value = props.value;
  const text = `${clock(at)} to ${clock(at + value.clip)} of ${clock(value.seconds)}`;
  element.querySelector(".where").textContent = text;
  range().setAttribute("aria-valuetext", text);
}

function commit() {
  // a new value, not a changed one: only that reaches the server
  props.value = { ...props.value, at: Number(range().value) };
}

function place() {
  if (!range()) return;
  range().value = props.value.at;
  write();
}

element.addEventListener("input", (event) => event.target === range() && write());
element.addEventListener("change", (event) => event.target === range() && commit());

// Browsers centre a slider's thumb under the pointer; a frame stays where it is held.
let drag = null;

function move(event) {
  range().value = (event.clientX - drag.left) * drag.scale - drag.held;
  write();
}

element.addEventListener("pointerdown", (event) => {
  const grip = event.target;
  if (!grip.classList.contains("grip")) return;
  const box = grip.getBoundingClientRect(), scale = props.value.seconds / box.width;
  const inside = (event.clientX - box.left) * scale - Number(range().value);
  const held = inside >= 0 && inside <= props.value.clip ? inside : props.value.clip / 2;
  drag = { left: box.left, scale, held };
  grip.setPointerCapture(event.pointerId);
  move(event);
});
element.addEventListener("pointermove", (event) => drag && move(event));
for (const end of ["pointerup", "pointercancel"]) {
  element.addEventListener(end, () => {
    if (!drag) return;
    drag = null;
    commit();
    range().focus({ focusVisible: false });
  });
}

element.addEventListener("click", (event) => {
  if (!event.target.classList.contains("hear")) return;
  const player = element.closest(".song").querySelector("audio");
  if (!player) return;
  player.currentTime = Number(range().value);
  player.play();
});

watch("value", place);
place();
