// Brings a chosen image to the server, which keeps nothing of it, and holds what comes back.
element.addEventListener("change", async (event) => {
  const file = event.target.files?.[0];
  if (!file) return;
  event.target.value = ""; // so that the same file can be chosen again
  const say = (words) => {
    const fault = element.querySelector(".fault");
    fault.textContent = words;
    fault.hidden = !words;
  };
  say("");
  if (file.size > props.most_bytes) return say(props.too_large);
  try {
    const answer = await fetch("IMAGE_PATH", { method: "POST", body: file });
    const words = await answer.text();
    if (!answer.ok) return say(words.charAt(0).toUpperCase() + words.slice(1));
    props.value = words;
    trigger("upload");
  } catch {
    say("The image could not be sent. Is the page still served?");
  }
});
