window.urbancross.start(window.urbancross.local());
