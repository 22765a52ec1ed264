
const text = document.getElementById('config');
const copy = document.getElementById('copy');
const copied = document.getElementById('copied');

function select() {
  const range = document.createRange();
  range.selectNodeContents(text);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

async function write() {
  // The clipboard interface exists only on HTTPS and localhost; the old command works everywhere else.
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text.textContent);
      return true;
    } catch (refused) { /* no permission: the old way */ }
  }
  select();
  return document.execCommand('copy');
}

copy.hidden = false;
copy.addEventListener('click', async () => {
  const done = await write();
  if (!done) select();
  copied.textContent = done ? 'Copied.' : 'Press and hold the selected text to copy it.';
});
