// One song's strip. `props.value.at` is where the clip begins; the server reads it with the next job.
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
const range = () => element.querySelector("input.frame");

function write(at) {
  const value = props.value;
  const text = `${clock(at)} to ${clock(at + value.clip)} of ${clock(value.seconds)}`;
  element.querySelector(".where").textContent = text;
  range().setAttribute("aria-valuetext", text);
}

function place() {
  if (!range()) return;
  range().value = props.value.at;
  write(props.value.at);
}

element.addEventListener("input", (event) => {
  if (event.target !== range()) return;
  const at = Number(range().value);
  write(at);
  props.value.at = at;
});

element.addEventListener("click", (event) => {
  if (!event.target.classList.contains("hear")) return;
  const player = element.closest(".song").querySelector("audio");
  if (!player) return;
  player.currentTime = props.value.at;
  player.play();
});

watch("value", place);
place();
