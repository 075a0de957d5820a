// Asks the service with the client's own body, then lets nginx proxy to the pod that it names.
async function route(r) {
    const answer = await r.subrequest('/kv-indexer/pick', { method: r.method, body: r.requestText || '' });
    const pod = answer.headersOut['x-gateway-destination-endpoint'];
    if (pod) {
        r.variables.pod = pod;
        r.variables.next_pod = (answer.headersOut['x-kv-fallbacks'] || pod).split(',')[0];
        r.internalRedirect('@pod');
    } else if (answer.status < 500) {
        r.headersOut['Content-Type'] = 'application/json';
        r.return(answer.status, answer.responseText);
    } else {
        r.internalRedirect('@any_pod');
    }
}

export default { route };
