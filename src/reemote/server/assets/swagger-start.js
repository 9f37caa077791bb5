// The page of operations. The specification is asked of this server, and of nobody else.
window.ui = SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    filter: true,
    validatorUrl: null,
});
