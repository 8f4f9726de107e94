"use strict";
// Without this file the form works as forms do. With it, what was typed, the key too, stays on the page while answers come.
const form = document.querySelector("form");
const showHint = () => { document.querySelector(".hint").hidden = false; };
showHint();
const say = (problem) => {
  const said = document.createElement("p");
  said.className = "problem";
  said.textContent = problem;
  document.getElementById("outcome").replaceChildren(said);
};

form.addEventListener("submit", async (event) => {
  const button = event.submitter ?? form.querySelector(".primary");
  if (button.name === "open" && !form.elements.key) return;
  event.preventDefault();
  const body = new URLSearchParams(new FormData(form, button));
  const words = button.textContent;
  button.disabled = true;
  if (button.name !== "open") button.textContent = "Asking…";
  try {
    const response = await fetch("/", { method: "POST", body });
    if (!response.headers.get("Content-Type")?.startsWith("text/html")) {
      say((await response.json()).error.message);  // refused before it reached the page
      return;
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const key = form.elements.key?.value;
    if (button.name === "open" && response.ok) {
      document.querySelector("header").replaceWith(page.querySelector("header"));
      form.replaceChildren(...page.querySelector("form").childNodes);
      document.title = page.title;
      showHint();
    } else {
      document.getElementById("outcome").replaceWith(page.getElementById("outcome"));
      const tasks = page.querySelector(".tasks");
      if (tasks && !form.querySelector(".tasks")) form.append(tasks.closest("section"));
    }
    if (key) form.elements.key.value = key;
  } catch {
    say("The server could not be reached.");
  } finally {
    button.disabled = false;
    button.textContent = words;
  }
});

form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(form.querySelector(".primary"));
});
