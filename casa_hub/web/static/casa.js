// The pages work without this program. It says how long it is until a time, and copies addresses.
"use strict";

(() => {
  const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

  function left(milliseconds) {
    if (milliseconds <= 0) return "over";
    if (milliseconds < MINUTE) return "less than a minute left";
    if (milliseconds < HOUR) return `${Math.floor(milliseconds / MINUTE)} min left`;
    if (milliseconds < DAY) {
      return `${Math.floor(milliseconds / HOUR)} h ${Math.floor((milliseconds % HOUR) / MINUTE)} min left`;
    }
    return `${Math.floor(milliseconds / DAY)} days left`;
  }

  function showTimeLeft() {
    for (const each of document.querySelectorAll("[data-until]")) {
      each.textContent = `(${left(each.dataset.until * SECOND - Date.now())})`;
    }
  }

  for (const button of document.querySelectorAll(".casa-copy")) {
    if (!navigator.clipboard) continue; // a browser gives it to pages with https only
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      document.getElementById("casa-copied").textContent = `Copied ${button.dataset.copy}`;
      button.textContent = "Copied";
    });
  }

  showTimeLeft();
  setInterval(showTimeLeft, 10 * SECOND);
})();
