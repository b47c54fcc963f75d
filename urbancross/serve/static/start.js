window.urbancross.start(window.urbancross.remote());
