'use strict';
const by = id => document.getElementById(id), form = by('form'), q = by('q'), said = by('said');
const cards = () => [...by('found').children];
let last = null, wanted = 0;  // The request of the list, and how many there were.

const time = s => {
  const whole = s < 600 ? s.toFixed(1) : Math.round(s);
  const [h, m, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const end = (s < 600 ? rest.toFixed(1).padStart(4, '0') : String(rest).padStart(2, '0'));
  return (h ? h + ':' + String(m).padStart(2, '0') : m) + ':' + end;
};

async function get(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw Error('The server does not answer; is it still running?');
  }
  const content = await answer.json().catch(() => ({detail: answer.statusText}));
  if (!answer.ok) throw Error(content.detail);
  return content;
}

function filters() {
  const fields = new FormData(form);
  return new URLSearchParams([...fields].filter(([name, value]) => name && value));
}

// What was searched for, the latest first; only this browser knows it.
function remember(text) {
  let before = [];
  try {
    before = JSON.parse(localStorage.recent || '[]');
    if (text) {
      before = [text, ...before.filter(x => x !== text)].slice(0, 20);
      localStorage.recent = JSON.stringify(before);
    }
  } catch { /* Nothing is kept here. */ }
  by('recent').replaceChildren(...before.map(x => Object.assign(document.createElement('option'), {value: x})));
}

async function search(asked, what, file) {
  const number = ++wanted, url = '/search?' + asked;
  said.textContent = 'Searching…';
  said.classList.remove('warning');
  try {
    const body = file && new FormData();
    if (file) body.append('file', file);
    const found = await get(url, file && {method: 'POST', body});
    if (number !== wanted) return;
    last = file ? null : asked;
    show(found, what);
  } catch (error) {
    if (number === wanted) complain(error);
  }
}

function complain(error) {
  said.textContent = error.message;
  said.classList.add('warning');
}

function show(found, what) {
  const hits = found.videos.reduce((sum, video) => sum + video.hits.length, 0);
  const how = found.read ? `; the fusion encoder read the ${found.read} nearest` : '';
  said.textContent = hits
    ? `${hits} moments in ${found.videos.length} videos for ${what}, ${found.seconds.toFixed(2)} s${how}.`
    : `Nothing was found for ${what}; are the filters too narrow?`;
  if (found.far) {
    said.textContent += ` Far from what the model was trained on: ${found.far}.`;
    said.classList.add('warning');
  }
  const share = hit => found.calibrated && !found.far && !hit.far
    ? (100 * hit.match).toFixed(1) + ' %' : hit.match.toFixed(2);
  by('found').replaceChildren(...found.videos.map((video, i) => card(video, i, share, found.text)));
  by('exports').hidden = !hits || !last;
  for (const link of by('exports').querySelectorAll('a')) {
    link.href = `/search?${last}&form=${link.dataset.form}`;
    link.download = 'hits.' + link.dataset.form;
  }
}

function card(video, number, share, text) {
  const own = by('card').content.cloneNode(true).firstElementChild;
  const $ = name => own.querySelector(name), player = $('video'), line = $('.line');
  let hit, copied = false;
  $('.name').textContent = $('.name').title = video.name;
  $('b').textContent = number + 1;
  $('a').href = '/videos/' + video.video;

  function choose(one) {
    hit = one;
    copied = false;
    player.removeAttribute('src');
    player.poster = `/clips/${hit.clip}.jpg`;
    player.setAttribute('aria-label', `${video.name}, ${time(hit.start)} to ${time(hit.stop)}`);
    own.setAttribute('aria-label', player.getAttribute('aria-label'));
    $('.span').textContent = `${time(hit.start)} – ${time(hit.stop)}`;
    const bar = document.createElement('div'), fill = document.createElement('b');
    bar.className = 'bar';
    fill.style.width = 100 * Math.min(Math.max(hit.match ?? hit.similarity, 0), 1) + '%';
    bar.append(fill);
    const scores = [hit.match !== null && 'match ' + share(hit), 'similarity ' + hit.similarity.toFixed(2)];
    $('.score').replaceChildren(bar, ...scores.filter(Boolean).map((score, i) =>
      Object.assign(document.createElement('span'), {textContent: score, className: i ? 'soft' : ''})));
    $('.far').textContent = hit.far && `far from training: ${hit.far}`;
    for (const mark of line.children) mark.setAttribute('aria-pressed', mark.hit === hit);
  }

  function play() {
    for (const other of document.querySelectorAll('video')) if (other !== player) other.pause();
    if (!player.src) {
      player.src = copied ? `/clips/${hit.clip}.mp4` : `/videos/${video.video}#t=${hit.start}`;
    } else if (!copied && (player.currentTime < hit.start || player.currentTime >= hit.stop)) {
      player.currentTime = hit.start;
    }
    player.play().catch(() => {});  // Another card was faster.
  }
  const stop = () => player.pause();

  player.addEventListener('loadedmetadata', () => {
    if (!copied && !player.videoWidth) player.dispatchEvent(new Event('error'));
  });
  player.addEventListener('timeupdate', () => {
    if (!copied && player.currentTime >= hit.stop) player.currentTime = hit.start;
  });
  player.addEventListener('ended', () => {
    if (!player.paused || player.ended) { player.currentTime = copied ? 0 : hit.start; player.play().catch(() => {}); }
  });
  // What the browser cannot play is asked for as a small copy, once.
  player.addEventListener('error', () => {
    if (copied || !player.hasAttribute('src')) return;
    copied = true;
    player.src = `/clips/${hit.clip}.mp4`;
    player.play().catch(() => {});
  });
  for (const event of ['play', 'pause']) player.addEventListener(event, () => {
    $('[data-do=play]').textContent = player.paused ? 'Play' : 'Pause';
  });
  player.addEventListener('mouseenter', play);
  player.addEventListener('mouseleave', stop);
  player.addEventListener('click', () => player.paused ? play() : stop());

  line.append(...video.hits.map(one => {
    const mark = document.createElement('button'), length = Math.max(video.seconds, one.stop, 1e-6);
    mark.hit = one;
    mark.title = `${time(one.start)} – ${time(one.stop)}`;
    mark.setAttribute('aria-label', 'Play ' + mark.title);
    mark.style.left = 100 * one.start / length + '%';
    mark.style.width = 100 * (one.stop - one.start) / length + '%';
    mark.addEventListener('click', () => { choose(one); play(); });
    return mark;
  }));
  own.do = {
    play: () => player.paused ? play() : stop(),
    like: () => {
      const asked = filters();
      asked.set('clip', hit.clip);
      search(asked, `what is like ${video.name}, ${time(hit.start)}`);
    },
    ask: () => ask(video),
    why: () => {
      by('showing').querySelector('iframe').src =
        `/explain?clip=${hit.clip}&q=${encodeURIComponent(text || q.value)}`;
      by('showing').showModal();
    },
  };
  if (!text && $('[data-do=why]')) $('[data-do=why]').hidden = true;
  own.addEventListener('click', event => own.do[event.target.dataset.do]?.());
  choose(video.hits[0]);
  return own;
}

function ask(video) {
  const dialog = by('asking'), question = dialog.querySelector('input'), out = dialog.querySelector('div');
  dialog.querySelector('h2').textContent = video.name;
  out.replaceChildren();
  dialog.querySelector('form').onsubmit = async event => {
    if (event.submitter?.value === 'close') return;
    event.preventDefault();
    out.textContent = 'Asking…';
    try {
      const answer = await get('/ask?' + new URLSearchParams({video: video.video, question: question.value}));
      const list = document.createElement('ol');
      list.append(...answer.answers.map(x =>
        Object.assign(document.createElement('li'), {textContent: `${x.answer}  ${x.shown}`})));
      out.replaceChildren(list, answer.far ? `Far from training: ${answer.far}` : '');
    } catch (error) {
      out.textContent = error.message;
    }
  };
  dialog.showModal();
  question.focus();
}

form.addEventListener('submit', event => {
  event.preventDefault();
  const text = q.value.trim();
  if (!text) return;
  remember(text);
  const asked = filters();
  asked.set('q', text);
  history.replaceState(null, '', '?' + asked);
  search(asked, `“${text}”`);
});
by('file').addEventListener('change', event => {
  const [file] = event.target.files;
  if (file) search(filters(), file.name, file);
  event.target.value = '';
});
by('showing').addEventListener('close', () => by('showing').querySelector('iframe').removeAttribute('src'));

document.addEventListener('keydown', event => {
  const typing = event.target.matches('input'), all = cards();
  if (document.querySelector('dialog[open]')) return;
  if (event.key === '/' && !typing) {
    event.preventDefault();
    q.focus();
    q.select();
  } else if (event.key === 'Escape') {
    for (const player of document.querySelectorAll('video')) player.pause();
    q.focus();
  } else if (all.length && /^Arrow/.test(event.key) && (!typing || (event.target === q && event.key === 'ArrowDown' && !q.value))) {
    move(event, all);
  } else if (event.key === 'Enter' && event.target.matches('article')) {
    event.target.do.play();
  }
});

function move(event, all) {
  const now = all.indexOf(document.activeElement.closest('article'));
  const columns = all.filter(x => x.offsetTop === all[0].offsetTop).length;
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
  event.preventDefault();
  all[now < 0 ? 0 : Math.min(Math.max(now + step, 0), all.length - 1)].focus();
}

// What an indexing that is at work says.
async function watch() {
  try {
    const now = await get('/status'), unread = by('unread');
    document.title = now.left ? `Search (${now.left} videos to index)` : 'Search';
    unread.hidden = !now.problems.length && !now.left;
    const left = now.left ? `${now.left} videos are still to be indexed; ${now.videos} are there. ` : '';
    unread.firstElementChild.textContent = `${left}${now.problems.length} could not be read whole.`;
    unread.lastElementChild.replaceChildren(...now.problems.map(x => Object.assign(
      document.createElement('li'), {textContent: `${x.video}: ${x.reason} ${x.detail}`})));
  } catch { /* The next search says it. */ }
  setTimeout(watch, 5000);
}

remember('');
watch();
const given = new URLSearchParams(location.search);
for (const [name, value] of given) {
  const field = name === 'q' ? q : form.elements[name];
  if (field) field.value = value;
}
if (q.value) form.requestSubmit();
