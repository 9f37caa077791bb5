// The reference page. The specification is asked of this server, and of nobody else.
Redoc.init("openapi.json", { hideDownloadButton: false, nativeScrollbars: true }, document.getElementById("redoc"));
