// Govmomi's vCenter simulator on a loopback port, for tests.
//
// It prints one line of JSON when it is ready, and ends when its standard input does. Each line of
// JSON that comes in is an order (see control.go), and is answered by one.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io/ioutil"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

type ready struct {
	Host string `json:"host"`
	Port string `json:"port"`
}

func main() {
	model := simulator.VPX()
	esx := flag.Bool("esx", false, "a single ESXi host")
	machines := flag.Int("machines", 2, "virtual machines")
	flag.IntVar(&model.Datacenter, "datacenters", 1, "datacenters")
	flag.IntVar(&model.Folder, "folders", 0, "folders around everything")
	user := flag.String("user", "", "the one user, with password")
	password := flag.String("password", "", "of the user")
	certificate := flag.String("certificate", "", "PEM file with key and certificate")
	flag.Parse()

	if *esx {
		single := simulator.ESX()
		model = single
	}
	model.Machine, model.Cluster, model.Host, model.Autostart = *machines, 0, 1, false
	log.SetOutput(ioutil.Discard)
	check(model.Create())

	pair, err := tls.LoadX509KeyPair(*certificate, *certificate)
	check(err)
	service := model.Service
	service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, *password)}
	simulator.OnCall, simulator.OnTask = onCall, onTask
	server := service.NewServer()
	server.Config.Handler = withFaults(server.Config.Handler)

	out := json.NewEncoder(os.Stdout)
	check(out.Encode(ready{server.URL.Hostname(), server.URL.Port()}))
	for in := json.NewDecoder(os.Stdin); ; {
		var order order
		if in.Decode(&order) != nil {
			model.Remove()
			os.Exit(0) // the one who started it has gone: nobody waits for an answer
		}
		check(out.Encode(order.obey()))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
