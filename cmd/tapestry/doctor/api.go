package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tapestry.dev/tapestry/kube"
)

// maxNodes is how many bytes of the list of Nodes are read at most.
const maxNodes = 64 << 20

// askAPI connects to the API server as the agent does, and records what the answers show.
func askAPI(ctx context.Context, o Options) *API {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	a := &API{Server: o.APIServer}
	client, token, err := apiClient(o.Credentials, o.ServerName)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	defer client.CloseIdleConnections()
	get := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(o.APIServer, "/")+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Accept", "application/json")
		return client.Do(req)
	}
	begin := time.Now()
	res, err := get("/version")
	if err != nil {
		a.Error = err.Error()
		return a
	}
	end := time.Now()
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		a.Error = "it answers " + res.Status
		return a
	}
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		// The header has a resolution of one second. The server wrote it at some time between begin and end.
		a.Margin = (end.Sub(begin) + time.Second) / 2
		a.Offset = date.Add(time.Second / 2).Sub(begin.Add(end.Sub(begin) / 2))
	}
	if a.Keys, err = nodeKeys(get); err != nil {
		a.KeysError = err.Error()
	}
	return a
}

func apiClient(dir, serverName string) (*http.Client, string, error) {
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return nil, "", fmt.Errorf("no credentials: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, "", fmt.Errorf("no credentials: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, "", fmt.Errorf("%s contains no certificate", filepath.Join(dir, "ca.crt"))
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS12}}
	return &http.Client{Transport: transport}, strings.TrimSpace(string(token)), nil
}

// nodeKeys returns the WireGuard keys that the Nodes announce, by node name.
func nodeKeys(get func(path string) (*http.Response, error)) (map[string]string, error) {
	res, err := get("/api/v1/nodes?limit=5000")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, errors.New("the API server answers " + res.Status)
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string            `json:"name"`
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxNodes)).Decode(&list); err != nil {
		return nil, fmt.Errorf("read the Nodes: %w", err)
	}
	keys := map[string]string{}
	for _, n := range list.Items {
		keys[n.Metadata.Name] = n.Metadata.Annotations[kube.PublicKeyAnnotation]
	}
	return keys, nil
}
