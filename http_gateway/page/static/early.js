// Runs before the first paint, so that the page never flashes in other colours or another language.
{
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("tandem")) ?? {};
  } catch {
    // Storage is blocked or damaged: start with the defaults.
  }
  if (saved.theme === "light" || saved.theme === "dark") document.documentElement.dataset.theme = saved.theme;
  const preferred = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
  document.documentElement.lang = saved.language === "en" || saved.language === "zh" ? saved.language : preferred;
}
