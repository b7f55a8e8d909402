// The clips of a dataset: thumbnails that play, captions edited in place, what training makes of each.
// Every text reaches the page as textContent or .value, never as markup.
const root = element.querySelector('.clipgrid');
const cards = new Map();
let shownDataset = null;

// --- the bar above the grid ---
const bar = make('div', 'bar');
const search = make('input', 'search');
search.type = 'search';
search.placeholder = 'Filter by name or caption  ( / )';
search.setAttribute('aria-label', 'Filter clips by name or caption');
const which = make('select', 'which');
which.setAttribute('aria-label', 'Which clips to show');
for (const [value, text] of [['', 'All clips'], ['used', 'Used'], ['trimmed', 'Trimmed'], ['dropped', 'Dropped'],
  ['bare', 'Without a caption']]) {
  const option = make('option', '', text);
  option.value = value;
  which.append(option);
}
const count = make('span', 'count');
count.setAttribute('role', 'status');
bar.append(search, which, count);
const empty = make('div', 'empty');
const grid = make('div', 'grid');
root.append(bar, empty, grid);

function filter() {
  const words = search.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards.values()) {
    const text = card.words.value;
    const fits = (card.clip.name + ' ' + text).toLowerCase().includes(words);
    const kind = !which.value || (which.value === 'bare' ? !text.trim() : card.clip.status === which.value);
    card.node.hidden = !(fits && kind);
    if (fits && kind) shown += 1;
  }
  count.textContent = shown === cards.size ? '' : `${shown} of ${cards.size} clips`;
}
search.addEventListener('input', filter);
which.addEventListener('change', filter);

// A call that fails on its way never answers at all: Gradio's client keeps it open.
async function ask(call) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('late')), 10000); });
  try {
    return (await Promise.race([call, late])) || { error: 'the studio gave no answer' };
  } catch (error) {
    return { error: 'the studio could not be reached' };
  } finally {
    clearTimeout(timer);
  }
}

// --- captions: typed text is kept in this browser until the server has confirmed it ---
function draftKey(card) { return `dailies:caption:${card.dataset}:${card.clip.id}`; }
function keepDraft(card) {
  try { localStorage.setItem(draftKey(card), card.words.value); } catch (error) { /* private window: nothing to keep */ }
}
function dropDraft(card) { try { localStorage.removeItem(draftKey(card)); } catch (error) { /* as above */ } }
function draft(card) { try { return localStorage.getItem(draftKey(card)); } catch (error) { return null; } }

function say(card, text, state) {
  card.state.textContent = text;
  card.state.className = 'state ' + state;
}

function typed(card) {
  keepDraft(card);
  say(card, 'Not saved yet', 'dirty');
  clearTimeout(card.timer);
  card.timer = setTimeout(() => save(card), 700);
}

async function save(card) {
  clearTimeout(card.timer);
  const text = card.words.value;
  if (text === card.saved || card.sending === text) return;
  card.sending = text;
  say(card, 'Saving', 'dirty');
  const answer = await ask(server.save_caption({ dataset: card.dataset, id: card.clip.id, text }));
  card.sending = null;
  if (answer.error) {
    say(card, `Not saved: ${answer.error}. It is kept here; press to try again.`, 'bad');
    return;
  }
  card.saved = text;
  if (card.words.value === text) {
    dropDraft(card);
    say(card, 'Saved', 'ok');
    filter();
    trigger('saved');
  } else {
    save(card);
  }
}

// --- playing: the video exists only while it is looked at ---
function play(card) {
  if (card.video || !card.clip.video) return;
  const video = make('video');
  video.muted = true;
  video.loop = true;
  video.playsInline = true;
  video.autoplay = true;
  video.src = card.clip.video.url;
  card.video = video;
  card.screen.append(video);
  card.screen.setAttribute('aria-pressed', 'true');
}

function stop(card) {
  if (!card.video) return;
  card.video.pause();
  card.video.removeAttribute('src');
  card.video.load();
  card.video.remove();
  card.video = null;
  card.screen.setAttribute('aria-pressed', 'false');
}

// --- removing, in two steps ---
function askRemove(card) {
  card.foot.replaceChildren();
  const question = make('span', 'question', 'Remove this clip for good?');
  const yes = make('button', 'small danger', 'Remove');
  const no = make('button', 'small', 'Keep');
  yes.type = no.type = 'button';
  yes.addEventListener('click', async () => {
    yes.disabled = true;
    const answer = await ask(server.remove_clip({ dataset: card.dataset, id: card.clip.id }));
    if (answer.error) {
      restFoot(card);
      say(card, `Not removed: ${answer.error}`, 'bad');
      return;
    }
    stop(card);
    dropDraft(card);
    clearTimeout(card.timer);
    card.node.remove();
    cards.delete(card.clip.id);
    filter();
    trigger('removed');
  });
  no.addEventListener('click', () => { restFoot(card); card.remove.focus(); });
  card.foot.append(question, yes, no);
  no.focus();
}

function restFoot(card) { card.foot.replaceChildren(card.state, card.remove); }

// --- cards ---
function newCard(clip) {
  const card = { clip, dataset: shownDataset, video: null, timer: 0, sending: null, saved: clip.text, touched: false };
  card.node = make('article', 'clip');
  card.screen = make('button', 'screen');
  card.screen.type = 'button';
  card.image = make('img');
  card.image.loading = cards.size < 60 ? 'eager' : 'lazy';
  card.image.alt = '';
  card.facts = make('span', 'facts');
  card.screen.append(card.image, card.facts);
  card.name = make('div', 'name');
  card.verdict = make('div', 'verdict');
  card.words = make('textarea', 'words');
  card.words.rows = 2;
  card.words.placeholder = 'No caption yet';
  card.foot = make('div', 'foot');
  card.state = make('button', 'state');
  card.state.type = 'button';
  card.remove = make('button', 'small', 'Remove');
  card.remove.type = 'button';
  card.node.append(card.screen, card.verdict, card.words, card.name, card.foot);
  restFoot(card);

  card.screen.addEventListener('pointerenter', (event) => { if (event.pointerType === 'mouse') play(card); });
  card.screen.addEventListener('pointerleave', (event) => { if (event.pointerType === 'mouse') stop(card); });
  card.screen.addEventListener('pointerdown', (event) => { card.touched = event.pointerType !== 'mouse'; });
  card.screen.addEventListener('click', (event) => {
    const byKey = event.detail === 0;
    if (!byKey && !card.touched) return;  // a mouse plays by resting on the picture
    if (card.video) stop(card); else play(card);
  });
  card.screen.addEventListener('blur', () => stop(card));
  card.words.addEventListener('input', () => typed(card));
  card.words.addEventListener('blur', () => save(card));
  card.state.addEventListener('click', () => save(card));
  card.remove.addEventListener('click', () => askRemove(card));
  return card;
}

function fill(card, clip) {
  const before = card.clip;
  card.clip = clip;
  const thumb = clip.thumb ? clip.thumb.url : '';
  if (card.image.getAttribute('src') !== thumb) {
    if (thumb) card.image.src = thumb; else card.image.removeAttribute('src');
  }
  card.screen.setAttribute('aria-label', `Play ${clip.name}`);
  card.screen.setAttribute('aria-pressed', String(Boolean(card.video)));
  card.facts.textContent = clip.facts;
  card.name.textContent = `${clip.size}  ${clip.name}`;
  card.name.title = clip.name;
  card.verdict.textContent = clip.verdict;
  card.verdict.className = 'verdict ' + (clip.status || '');
  card.words.setAttribute('aria-label', `Caption of ${clip.name}`);
  card.remove.setAttribute('aria-label', `Remove ${clip.name}`);
  // What is being typed is never overwritten by what arrives.
  const clean = card.words.value === card.saved;
  if (before === clip || (clean && !card.sending && clip.text !== card.saved)) {
    card.saved = clip.text;
    card.words.value = clip.text;
  }
}

function build() {
  const value = props.value || {};
  const clips = value.clips || [];
  if (value.dataset !== shownDataset) {
    for (const card of cards.values()) { stop(card); save(card); card.node.remove(); }
    cards.clear();
    shownDataset = value.dataset;
    search.value = '';
    which.value = '';
  }
  const wanted = new Set(clips.map((clip) => clip.id));
  for (const [id, card] of cards) {
    if (!wanted.has(id)) { stop(card); card.node.remove(); cards.delete(id); }
  }
  clips.forEach((clip, place) => {
    let card = cards.get(clip.id);
    if (!card) {
      card = newCard(clip);
      cards.set(clip.id, card);
      fill(card, clip);
      const kept = draft(card);
      if (kept !== null && kept !== clip.text) {
        card.words.value = kept;
        save(card);
      }
    } else {
      fill(card, clip);
    }
    if (grid.children[place] !== card.node) grid.insertBefore(card.node, grid.children[place] || null);
  });
  empty.textContent = value.empty || '';
  empty.hidden = clips.length > 0 || !value.empty;
  bar.hidden = clips.length === 0;
  grid.classList.toggle('many', clips.length > 60);
  filter();
}

function shortcut(event) {
  if (!element.isConnected) { document.removeEventListener('keydown', shortcut); return; }
  const typing = /^(input|textarea|select)$/i.test(event.target.tagName || '') || event.target.isContentEditable;
  if (event.key !== '/' || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (bar.offsetParent === null) return;
  event.preventDefault();
  search.focus();
}
document.addEventListener('keydown', shortcut);
watch('value', build);
build();
