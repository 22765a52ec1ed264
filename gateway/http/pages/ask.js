
// A second tap would open the link again, and find it used up.
const form = document.getElementById('ask');
const button = document.getElementById('open');
let sent = false;
form.addEventListener('submit', (event) => {
  if (sent) {
    event.preventDefault();
    return;
  }
  sent = true;
  button.setAttribute('aria-disabled', 'true');
  button.textContent = 'Opening …';
});
window.addEventListener('pageshow', (event) => {
  if (event.persisted) location.reload();
});
