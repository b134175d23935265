// Command tailnet is a tailnet for tests: a control server, a DERP server and any number of nodes in one
// process, all on 127.0.0.1. It reads commands from stdin, one JSON object a line, and answers each with one
// line on stdout; it ends when stdin does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"
)

const commandSeconds = 30

// A command is one line of input. Only Do and Name are in all of them.
type command struct {
	Do       string   // add, start, stop, rotate, remove, online, expire, hide, rename or block
	Name     string   // the node's, in these commands and in its socket's path
	HostName string   // add: what the node calls itself, if not Name
	Login    string   // add: its user
	Tags     []string // add: what it has instead of a user, each with its "tag:"
	Value    *bool    // online: null to tell the truth again; expire; hide
	DNSLabel string   // rename: the first label of its DNS name
	From     []string // block: names of nodes whose packets it drops; the empty list ends that
}

// An answer says how things stand with the node a command was about, or what went wrong.
type answer struct {
	Error   string   `json:"error,omitempty"`
	ID      string   `json:"id,omitempty"`
	NodeID  int64    `json:"node_id,omitempty"`
	NodeKey string   `json:"node_key,omitempty"`
	DNSName string   `json:"dns_name,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	Socket  string   `json:"socket,omitempty"`
}

func main() {
	directory := flag.String("dir", "", "where sockets and the nodes' state go")
	flag.Parse()
	if *directory == "" {
		log.Fatal("-dir is missing")
	}
	stayHere(*directory)
	net := newTailnet(*directory)
	answers := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		facts, err := obey(net, lines.Bytes())
		if err != nil {
			facts = answer{Error: err.Error()}
		}
		if err := answers.Encode(facts); err != nil {
			log.Fatal(err)
		}
	}
}

func obey(net *tailnet, line []byte) (answer, error) {
	var c command
	if err := json.Unmarshal(line, &c); err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandSeconds*time.Second)
	defer cancel()
	if err := net.obey(ctx, c); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", c.Do, c.Name, err)
	}
	return net.facts(c.Name), nil
}
