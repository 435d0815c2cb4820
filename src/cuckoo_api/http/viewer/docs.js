// Shows the server's own description of its interface. A token is asked for where the server wants
// one; it stays in this page's memory, and is gone with the page.
"use strict";

(() => {
  const address = new URL("../openapi.json", document.currentScript.src);
  const form = document.getElementById("access");
  const input = document.getElementById("token");
  const said = document.getElementById("said");

  async function load(token) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let response;
    let content;
    try {
      response = await fetch(address, { headers });
      content = await response.json();
    } catch (error) {
      said.textContent = `The server did not answer: ${error.message}`;
      return;
    }
    if (response.ok) {
      show(content, token);
      return;
    }
    said.textContent = content.message;
    form.hidden = response.status !== 401 && !token;
    input.focus();
  }

  function show(spec, token) {
    form.hidden = true;
    input.value = said.textContent = "";
    const viewer = SwaggerUIBundle({
      spec,
      dom_id: "#description",
      deepLinking: true,
      validatorUrl: null, // it would send the description to its makers
      onComplete: () => token && viewer.preauthorizeApiKey("token", token),
    });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    load(input.value.trim());
  });
  load("");
})();
