// Before the first paint, so that a dark page never flashes white.
"use strict";
const chosen = localStorage.getItem("farm-theme");
if (chosen) document.documentElement.dataset.theme = chosen;
